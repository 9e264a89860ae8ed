"""One answer of the hub mirror: its JSON, its headers, and which bytes of a file it carries."""

import socket

from aiohttp import web

from quire_cluster.hub_repos import Commit, HubFile

SEND_BUFFER = 256 * 1024
"""Bytes: small, so that little counts as served that never arrived."""


def sibling(file: HubFile, *, blobs: bool) -> dict[str, object]:
    """A file as GET /api/models lists it."""
    entry: dict[str, object] = {"rfilename": file.path}
    if blobs:
        entry |= {"size": file.size, "blobId": file.blob_id}
        if file.is_lfs:
            entry["lfs"] = {"size": file.size, "sha256": file.sha256, "pointerSize": 134}
    return entry


def tree_entry(file: HubFile) -> dict[str, object]:
    """A file as the tree lists it."""
    entry: dict[str, object] = {"type": "file", "path": file.path}
    entry |= {"size": file.size, "oid": file.blob_id}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry


def file_headers(file: HubFile, commit: Commit) -> dict[str, str]:
    """What the hub says of a file beside its bytes."""
    headers = {
        "ETag": f'"{file.etag}"',
        "X-Repo-Commit": commit.id,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if file.is_lfs:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
    return headers


def requested_range(request: web.Request, size: int) -> range | None:
    """The bytes asked for; the whole file without a Range; None when it cannot be satisfied."""
    try:
        asked = request.http_range
    except ValueError:
        return range(size)
    start, stop, _ = slice(asked.start, asked.stop).indices(size)
    if asked.start is None and asked.stop is None:
        return range(size)
    return range(start, stop) if start < stop else None


def until(limit: int | None, sent: int, want: int) -> int:
    """So many of the wanted bytes lie before the limit."""
    return want if limit is None else max(0, min(want, limit - sent))


def flipped(chunk: bytes, offset: int, flip_at: int | None) -> bytes:
    """The chunk, with the byte at `flip_at` of the whole file changed by one bit if it is in it."""
    if flip_at is None or not offset <= flip_at < offset + len(chunk):
        return chunk
    changed = bytearray(chunk)
    changed[flip_at - offset] ^= 1
    return bytes(changed)


def limit_send_buffer(request: web.Request) -> None:
    """What lies in socket buffers counts as served, though a killed client never sees it."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
