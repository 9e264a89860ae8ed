"""Bytes over HTTP: ranges of files, many at once, tried again while there is hope.

A worker takes the next missing span of the next file and streams it into that file's PartFile; the
one that completes a file hashes it. A failure that may pass is tried again from the byte where it
struck; any other ends the whole transfer.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from quire_engine.fetch.errors import (
    Corrupt,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnreachable,
    Stalled,
)
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.parts import PartFile, default_part_bytes
from quire_engine.fetch.progress import Progress
from quire_engine.fetch.retry import RETRYABLE_STATUSES, Backoff, TryAgain, retry_after_seconds
from quire_engine.fetch.source import RemoteFile
from quire_engine.fetch.store import has_digest

logger = logging.getLogger(__name__)

FLUSH_BYTES = 512 * 1024  # what a kill loses of a connection at most
CONNECT_SECONDS = 10.0
SILENCES = 3  # reads in a row without a byte that make a stall
PROGRESS_BYTES = 64 * 1024  # a request that brings less has brought nothing: no drip keeps us
CONTENT_ATTEMPTS = 3  # downloads of a file whose digest is wrong


@dataclass
class _FileTransfer:
    """One file on its way."""

    remote: RemoteFile
    attempt: int
    part_file: PartFile
    parts_left: int


def new_client(options: SourceOptions) -> httpx2.AsyncClient:
    """A client as patient as `options` says. Proxies and CA bundle come from the environment."""
    read = options.stall_seconds * 0.95 / SILENCES  # the waits between reads take the rest
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(read, connect=min(CONNECT_SECONDS, read), pool=None),
        limits=httpx2.Limits(max_connections=options.connections),
        follow_redirects=True,  # the token stays with its own host
    )


class Transfer:
    """Fetches files into a folder, each under its digest's key."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        options: SourceOptions,
        progress: Progress,
        url_of: Callable[[str], str],
    ) -> None:
        self._client, self._options, self._progress = client, options, progress
        self._url_of = url_of
        self._waiting: deque[tuple[RemoteFile, int]] = deque()  # with the attempt's number
        self._ready: deque[tuple[_FileTransfer, int | None]] = deque()  # with a part
        self._opened: list[_FileTransfer] = []
        self._num_downloading = 0

    async def fetch(self, files: Sequence[RemoteFile], folder: Path) -> None:
        """Download and verify each file as folder/<digest key>. Raises FetchFailed or OSError."""
        self._waiting.extend((file, 1) for file in files)
        self._progress.phase = "downloading"
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.connections):
                    group.create_task(self._work(folder))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for file in self._opened:
                file.part_file.close()

    async def _work(self, folder: Path) -> None:
        while (item := self._next(folder)) is not None:
            file, part = item
            if part is not None:
                self._num_downloading += 1
                await self._download(file, part)
                self._num_downloading -= 1
                file.parts_left -= 1
            if file.parts_left == 0:
                await self._complete(file, folder)

    def _next(self, folder: Path) -> tuple[_FileTransfer, int | None] | None:
        """The next part to download; None for its number when a file has only to be verified."""
        if not self._ready and self._waiting:
            remote, attempt = self._waiting.popleft()
            size = self._options.part_bytes or default_part_bytes(remote.size)
            part_file = PartFile(folder / remote.digest.key, remote.size, size)
            parts: list[int | None] = [span.part for span in part_file.table.missing()]
            file = _FileTransfer(remote, attempt, part_file, len(parts))
            self._opened.append(file)
            self._ready.extend((file, part) for part in parts or [None])
        return self._ready.popleft() if self._ready else None

    async def _complete(self, file: _FileTransfer, folder: Path) -> None:
        if not (self._num_downloading or self._ready or self._waiting):
            self._progress.phase = "verifying"
        remote, part_file = file.remote, file.part_file
        whole = await asyncio.to_thread(has_digest, part_file.partial, remote)
        self._opened.remove(file)
        if whole:
            await asyncio.to_thread(part_file.finish, folder / remote.digest.key)
            return
        part_file.discard()
        self._progress.bytes_done -= remote.size
        if file.attempt >= CONTENT_ATTEMPTS:
            raise Corrupt(
                f"{remote.path} must have {remote.digest.algorithm} {remote.digest.value}, got "
                f"other bytes {file.attempt} times; the source or the way to it alters files"
            )
        logger.warning("wrong content, fetching it anew file=%s", remote.path)
        self._progress.phase = "downloading"
        self._waiting.appendleft((remote, file.attempt + 1))

    async def _download(self, file: _FileTransfer, part: int) -> None:
        """Complete one part, through as many requests as that takes."""
        failures = silences = 0
        backoff = Backoff(self._options.backoff_seconds)
        while True:
            before = file.part_file.table.done[part]
            try:
                await self._request(file, part)
                return
            except TryAgain as error:
                if file.part_file.table.done[part] - before >= PROGRESS_BYTES:
                    failures = silences = 0
                failures += 1
                silences = silences + 1 if isinstance(error.failure, Stalled) else 0
                if silences >= SILENCES or failures >= self._options.max_attempts:
                    raise error.failure from None
                wait = error.retry_after
                if wait is None:
                    wait = backoff.seconds(failures, random.random())  # noqa: S311
                self._progress.note = str(error.failure)
                logger.warning("trying again seconds=%.1f cause=%s", wait, error.failure)
                await asyncio.sleep(wait)

    async def _request(self, file: _FileTransfer, part: int) -> None:
        """One request for what the part still lacks. TryAgain when it did not bring all of it."""
        table, path = file.part_file.table, file.remote.path
        start = part * table.part_bytes + table.done[part]
        stop = part * table.part_bytes + table.length(part)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if self._options.token is not None:
            headers["Authorization"] = f"Bearer {self._options.token}"
        try:
            async with self._client.stream("GET", self._url_of(path), headers=headers) as response:
                check_response(response, path, range(start, stop), file.remote.size)
                await self._receive(response, file.part_file, part, stop - start)
        except httpx2.ReadTimeout:
            seconds = self._options.stall_seconds
            raise TryAgain(
                Stalled(f"{path} must keep coming, got no byte for {seconds:g} s")
            ) from None
        except httpx2.HTTPError as error:
            raise TryAgain(_interrupted(path, type(error).__name__)) from None
        if table.done[part] < table.length(part):
            raise TryAgain(_interrupted(path, "an early end"))

    async def _receive(
        self, response: httpx2.Response, part_file: PartFile, part: int, room: int
    ) -> None:
        """Stream the body into the part; what has come is kept, however it ends.

        Writes block the loop: a volume slower than the network is the only brake there is.
        """
        buffer = bytearray()
        try:
            async for chunk in response.aiter_raw():
                taken = chunk[:room]
                room -= len(taken)
                buffer += taken
                self._progress.received(len(taken))
                if len(buffer) >= FLUSH_BYTES:
                    part_file.write(part, buffer)
                    buffer = bytearray()
                if room == 0:
                    break
        finally:
            if buffer:
                part_file.write(part, buffer)


def check_response(response: httpx2.Response, path: str, span: range, size: int) -> None:
    """Hold an answer's status and Content-Range against what was asked for."""
    status = response.status_code
    if status in RETRYABLE_STATUSES:
        wait = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
        failure = SourceUnreachable(f"{path} must be served, got HTTP {status} again and again")
        raise TryAgain(failure, wait)
    if status in (401, 403):
        raise SourceUnauthorized(
            f"{path} was refused (HTTP {status}); accept the model's terms on the hub, or renew "
            "the token in the Secret that model.credentialsSecret names"
        )
    if status == 404:
        raise SourceNotFound(f"{path} is listed but was not found (HTTP 404)")
    whole = status == 200 and span == range(size)
    if not whole and status not in (206, 416):
        raise SourceUnreachable(f"{path} must be served by Range, got HTTP {status}")
    served = response.headers.get("Content-Range" if not whole else "Content-Length", "")
    expected = f"{size}" if whole else f"bytes {span.start}-{span.stop - 1}/{size}"
    if served != expected:
        raise Corrupt(
            f"{path} must have the {size:,} bytes that the source lists, got an answer of "
            f"{served or 'unknown length'!r} for {expected!r}; the source contradicts itself"
        )


def _interrupted(path: str, what: str) -> SourceUnreachable:
    return SourceUnreachable(f"{path} must come whole, got {what} again and again")
