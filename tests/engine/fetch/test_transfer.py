"""What of a transfer no source shows: the volume that it writes to."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.parts import PartFile
from quire_engine.fetch.progress import Progress
from quire_engine.fetch.source import Digest, RemoteFile
from quire_engine.fetch.transfer import FLUSH_BYTES, Transfer

CONTENT = {"slow": b"a" * FLUSH_BYTES, "waits": b"b" * 100_000}
PAUSE_SECONDS = 0.4
OPTIONS = SourceOptions(connections=2, stall_seconds=0.3, backoff_seconds=0.01)


def remote(name: str) -> RemoteFile:
    digest = Digest("sha256", hashlib.sha256(CONTENT[name]).hexdigest())
    return RemoteFile(name, len(CONTENT[name]), digest)


def test_a_volume_that_pauses_is_no_silence_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file's write blocks for longer than the source may be silent; the other file's bytes come
    meanwhile."""
    wrote = PartFile.write
    asked: list[str] = []
    held_up: list[str] = []

    def write(self: PartFile, part: int, data: bytes | bytearray | memoryview) -> None:
        if bytes(data[:1]) == b"a" and not held_up:
            held_up.append("slow")
            time.sleep(PAUSE_SECONDS)
        wrote(self, part, data)

    monkeypatch.setattr(PartFile, "write", write)

    @asynccontextmanager
    async def open_span(file: RemoteFile, span: range) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            asked.append(file.path)
            while len(asked) < len(CONTENT):
                await asyncio.sleep(0)
            if file.path == "waits":
                await asyncio.sleep(0.01)  # what was asked for comes while nobody listens
            yield CONTENT[file.path][span.start : span.stop]

        yield chunks()

    transfer = Transfer(open_span, OPTIONS, Progress())
    asyncio.run(transfer.fetch([remote("slow"), remote("waits")], tmp_path))
    assert held_up
    for name, content in CONTENT.items():
        assert (tmp_path / remote(name).digest.key).read_bytes() == content
