"""Ranges of files, many at once, tried again while there is hope.

A worker takes the next missing span of the next file and streams it into that file's PartFile; the
one that completes a file hashes it. A failure that may pass is tried again from the byte where it
struck; any other ends the whole transfer. Where bytes come from is the source's (sources.py).
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quire_engine.fetch.errors import Corrupt
from quire_engine.fetch.http_ranges import interrupted, stalled
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.parts import PartFile, default_part_bytes
from quire_engine.fetch.progress import Progress
from quire_engine.fetch.retry import Backoff, Patience, TryAgain
from quire_engine.fetch.source import RemoteFile
from quire_engine.fetch.sources import OpenSpan
from quire_engine.fetch.store import has_digest

logger = logging.getLogger(__name__)

FLUSH_BYTES = 512 * 1024  # what a kill loses of a connection at most
FLUSH_SECONDS = 0.25  # and on a slow line, what came since
# A request that brings less counts as a failure: a source that sends a byte and hangs up keeps
# nobody for long. One that goes on, however slowly, is slow, and `Ready` says at what rate.
PROGRESS_BYTES = 64 * 1024
SLOW_WRITE = 0.05  # of silence_seconds: a write that takes longer holds up every connection
CONTENT_ATTEMPTS = 3  # downloads of a file whose digest is wrong


@dataclass
class _FileTransfer:
    """One file on its way."""

    remote: RemoteFile
    attempt: int
    part_file: PartFile
    parts_left: int


class Transfer:
    """Fetches files into a folder, each under its digest's key."""

    def __init__(self, open_span: OpenSpan, options: SourceOptions, progress: Progress) -> None:
        self._open_span, self._options, self._progress = open_span, options, progress
        self._waiting: deque[tuple[RemoteFile, int]] = deque()  # with the attempt's number
        self._ready: deque[tuple[_FileTransfer, int | None]] = deque()  # with a part
        self._opened: list[_FileTransfer] = []
        self._num_downloading = 0
        self._held_up_at = -math.inf  # when the last slow write ended

    async def fetch(self, files: Sequence[RemoteFile], folder: Path) -> None:
        """Download and verify each file as folder/<digest key>. Raises FetchFailed or OSError."""
        self._waiting.extend((file, 1) for file in files)
        self._progress.phase = "downloading"
        self._progress.renew()
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
        options = self._options
        patience = Patience(
            options.max_attempts, options.stall_seconds, options.silence_seconds, time.monotonic()
        )
        backoff = Backoff(self._options.backoff_seconds)
        while True:
            before = file.part_file.table.done[part]
            try:
                await self._request(file, part, patience)
                return
            except TryAgain as error:
                if file.part_file.table.done[part] - before >= PROGRESS_BYTES:
                    patience.renew()
                wait = error.retry_after
                if wait is None:
                    wait = backoff.seconds(patience.failures + 1, random.random())  # noqa: S311
                if patience.is_spent(error, time.monotonic() + wait):
                    raise error.failure from None
                self._progress.trouble = error.failure
                logger.warning("trying again seconds=%.1f cause=%s", wait, error.failure)
                await asyncio.sleep(wait)

    async def _request(self, file: _FileTransfer, part: int, patience: Patience) -> None:
        """One request for what the part still lacks. TryAgain when it did not bring all of it, or
        for `silence_seconds` nothing: one bound for every source, whatever its client waits for."""
        table = file.part_file.table
        start = part * table.part_bytes + table.done[part]
        stop = part * table.part_bytes + table.length(part)
        try:
            async with asyncio.timeout(self._options.silence_seconds) as silence:
                hear = partial(self._hear, silence, patience)
                async with self._open_span(file.remote, range(start, stop)) as chunks:
                    await self._receive(chunks, file.part_file, part, stop - start, hear)
        except TimeoutError:
            if not silence.expired():  # the volume's own
                raise
            now = time.monotonic()
            if now - self._held_up_at < self._options.silence_seconds:
                patience.heard = now  # nobody listened, whatever the source sent
                raise TryAgain(interrupted(file.remote.path, "a pause of the volume")) from None
            raise TryAgain(stalled(file.remote.path, self._options)) from None
        if table.done[part] < table.length(part):
            raise TryAgain(interrupted(file.remote.path, "an early end"))

    def _hear(self, silence: asyncio.Timeout, patience: Patience) -> None:
        """Something came: a new wait begins."""
        patience.heard = time.monotonic()
        silence.reschedule(asyncio.get_running_loop().time() + self._options.silence_seconds)

    async def _receive(
        self,
        chunks: AsyncIterator[bytes],
        part_file: PartFile,
        part: int,
        room: int,
        hear: Callable[[], None],
    ) -> None:
        """Stream the body into the part; what has come is kept, however it ends.

        Writes block the loop: a volume slower than the network is the only brake there is.
        """
        buffer, flushed = bytearray(), time.monotonic()
        try:
            async for chunk in chunks:
                taken = chunk[:room]
                room -= len(taken)
                buffer += taken
                self._progress.received(len(taken))
                now = time.monotonic()
                if len(buffer) >= FLUSH_BYTES or now - flushed >= FLUSH_SECONDS:
                    self._write(part_file, part, buffer)
                    buffer, flushed = bytearray(), now
                hear()  # after the write: a slow volume is no silence of the source
                if room == 0:
                    break
        finally:
            if buffer:
                self._write(part_file, part, buffer)

    def _write(self, part_file: PartFile, part: int, buffer: bytearray) -> None:
        began = time.monotonic()
        part_file.write(part, buffer)
        now = time.monotonic()
        if now - began > SLOW_WRITE * self._options.silence_seconds:
            self._held_up_at = now
