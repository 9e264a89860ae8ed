"""Gets one page over HTTP/1.1, with as little as that takes.

A client library's request costs 0.8 ms of processor time beside the connection, and the scaling
loop makes 3,000 every five seconds on the core that everything else shares. One GET, no redirect,
no compression, no connection kept (the engine's server closes idle ones at about the loop's own
interval); the body by its length, by chunks, or until the end of the connection (RFC 9112, 6.3).
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

_HEAD_BYTES = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class BadAnswer(Exception):
    """What came is no page; the message completes the sentence "pod x ..."."""


async def get(url: str, max_bytes: int) -> bytes:
    """The page's bytes. Raises BadAnswer, OSError; the deadline is the caller's."""
    parts = urlsplit(url)
    request = (
        f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/plain\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    answer = _Answer(request.encode("ascii"), max_bytes, loop.create_future())
    host, port = parts.hostname or "", parts.port or 80
    transport, _ = await loop.create_connection(lambda: answer, host, port)
    try:
        return await answer.page
    finally:
        transport.abort()


class _Answer(asyncio.Protocol):
    """One connection; `page` is set once everything has come."""

    def __init__(self, request: bytes, max_bytes: int, page: asyncio.Future[bytes]) -> None:
        self.page = page
        self._request = request
        self._max_bytes = max_bytes
        self._received = bytearray()
        self._head: _Head | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.page.done():
            return
        self._received += data
        try:
            self._look(ended=False)
        except BadAnswer as error:
            self.page.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.page.done():
            return
        try:
            if exc is not None:
                raise BadAnswer(f"cannot be read: {exc or type(exc).__name__}")
            self._look(ended=True)
        except BadAnswer as error:
            self.page.set_exception(error)

    def _look(self, *, ended: bool) -> None:
        if self._head is None:
            self._head = _take_head(self._received)
        if self._head is not None:
            if len(self._received) > self._max_bytes:
                raise BadAnswer(f"answered more than {self._max_bytes} bytes")
            if self._head.is_whole(self._received, ended):
                self.page.set_result(self._head.body(self._received))
        elif len(self._received) > _HEAD_BYTES:
            raise BadAnswer("cannot be read: it does not speak HTTP")
        if ended and not self.page.done():
            raise BadAnswer("cannot be read: the connection ended before the page did")


class _Head:
    """How the body is delimited."""

    __slots__ = ("_is_chunked", "_length")

    def __init__(self, length: int | None, *, is_chunked: bool) -> None:
        self._length = length
        self._is_chunked = is_chunked

    def is_whole(self, body: bytearray, ended: bool) -> bool:
        if self._is_chunked:
            return body.endswith(_LAST_CHUNK)
        return ended if self._length is None else len(body) >= self._length

    def body(self, received: bytearray) -> bytes:
        return _dechunked(received) if self._is_chunked else bytes(received[: self._length])


def _take_head(received: bytearray) -> _Head | None:
    """Cuts the head off; None while it has not all come."""
    end = received.find(_END_OF_HEAD)
    if end < 0:
        return None
    status, *lines = bytes(received[:end]).split(b"\r\n")
    del received[: end + len(_END_OF_HEAD)]
    version, _, rest = status.partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or not code.isdigit():
        raise BadAnswer("cannot be read: it does not speak HTTP")
    if code != b"200":
        raise BadAnswer(f"answered {code.decode()}")
    headers = {name.strip().lower(): value.strip() for name, _, value in map(_split, lines)}
    length = headers.get(b"content-length")
    if length is not None and not length.isdigit():
        raise BadAnswer("cannot be read: its Content-Length is no number")
    is_chunked = b"chunked" in headers.get(b"transfer-encoding", b"").lower()
    return _Head(None if length is None else int(length), is_chunked=is_chunked)


def _split(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def _dechunked(received: bytearray) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = received.find(b"\r\n", at)
        try:
            size = int(bytes(received[at:end]).partition(b";")[0], 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0:
            raise BadAnswer("cannot be read: its chunks are broken")
        if size == 0:
            return b"".join(parts)
        parts.append(bytes(received[end + 2 : end + 2 + size]))
        at = end + 2 + size + 2
