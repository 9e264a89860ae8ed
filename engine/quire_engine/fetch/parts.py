"""Which bytes of a half-fetched file are there: survives a kill at any moment.

Beside `NAME.partial`, a sparse file of the final size, lies `NAME.parts`: a header and one
little-endian uint64 a part, how many bytes of that part, from its begin, are in the partial file.
A part's number is raised only after its bytes are written, and by one 8-byte write that cannot
tear, so that it never claims more than there is. (A power cut may lose bytes that the table claims;
the digest of the whole file finds that, and the file is fetched anew.)
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = struct.Struct("<8sQQ")  # magic, size, part_bytes
_MAGIC = b"QPARTS1\n"
_ENTRY = struct.Struct("<Q")
SMALL_PART = 16 * 1024**2
LARGE_PART = 64 * 1024**2


def default_part_bytes(size: int) -> int:
    """Small parts spread small files over the connections, large ones save redirects."""
    return SMALL_PART if size <= 1024**3 else LARGE_PART


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a file that part `part` still lacks."""

    part: int
    start: int
    stop: int


@dataclass
class PartTable:
    """The bookkeeping of one file, without its storage."""

    size: int
    part_bytes: int
    done: list[int] = field(default_factory=list)  # bytes, one entry a part

    def __post_init__(self) -> None:
        assert self.part_bytes > 0
        if not self.done:
            self.done = [0] * -(-self.size // self.part_bytes)
        self.check_integrity()

    def length(self, part: int) -> int:
        """Bytes in this part; only the last one may be short."""
        return min(self.part_bytes, self.size - part * self.part_bytes)

    def missing(self) -> list[Span]:
        """What is not there yet, in order."""
        return [
            Span(part, part * self.part_bytes + done, part * self.part_bytes + self.length(part))
            for part, done in enumerate(self.done)
            if done < self.length(part)
        ]

    def advance(self, part: int, num_bytes: int) -> None:
        """`num_bytes` more of this part are written."""
        assert 0 <= num_bytes <= self.length(part) - self.done[part]
        self.done[part] += num_bytes

    @property
    def bytes_done(self) -> int:
        return sum(self.done)

    def check_integrity(self) -> None:
        assert len(self.done) == -(-self.size // self.part_bytes)
        assert all(0 <= done <= self.length(part) for part, done in enumerate(self.done))

    def encode(self) -> bytes:
        header = _HEADER.pack(_MAGIC, self.size, self.part_bytes)
        return header + b"".join(_ENTRY.pack(done) for done in self.done)

    @staticmethod
    def decode(data: bytes, size: int) -> "PartTable | None":
        """The table in `data`, or None unless it is a sound one for a file of `size` bytes."""
        if len(data) < _HEADER.size:
            return None
        magic, table_size, part_bytes = _HEADER.unpack_from(data)
        if magic != _MAGIC or table_size != size or part_bytes == 0:
            return None
        if len(data) != _HEADER.size + _ENTRY.size * -(-size // part_bytes):
            return None
        done = [value for (value,) in _ENTRY.iter_unpack(data[_HEADER.size :])]
        table = PartTable(size, part_bytes)
        if any(value > table.length(part) for part, value in enumerate(done)):
            return None
        table.done = done
        return table


class PartFile:
    """A half-fetched file on the volume, opened where its table says it stands."""

    def __init__(self, path: Path, size: int, part_bytes: int) -> None:
        """Open `path`.partial and `path`.parts, or begin them anew when they are not sound."""
        self.partial = path.with_name(path.name + ".partial")
        self._table_path = path.with_name(path.name + ".parts")
        self.table = self._load(size) or self._begin(size, part_bytes)
        self._data = os.open(self.partial, os.O_RDWR)
        self._entries = os.open(self._table_path, os.O_RDWR)

    def write(self, part: int, data: bytes | bytearray | memoryview) -> None:
        """Append `data` to what this part has. OSError (ENOSPC) leaves the table as it was."""
        at = part * self.table.part_bytes + self.table.done[part]
        _write_all(self._data, data, at)
        self.table.advance(part, len(data))
        entry = _HEADER.size + _ENTRY.size * part
        _write_all(self._entries, _ENTRY.pack(self.table.done[part]), entry)

    def finish(self, target: Path) -> None:
        """The content is right: make it durable and give it its name."""
        os.fsync(self._data)
        self.close()
        self.partial.rename(target)
        self._table_path.unlink()

    def discard(self) -> None:
        """The content is wrong: forget all of it."""
        self.close()
        self.partial.unlink()
        self._table_path.unlink()

    def close(self) -> None:
        os.close(self._data)
        os.close(self._entries)

    def _load(self, size: int) -> PartTable | None:
        try:
            if self.partial.stat().st_size != size:
                return None
            return PartTable.decode(self._table_path.read_bytes(), size)
        except FileNotFoundError:
            return None

    def _begin(self, size: int, part_bytes: int) -> PartTable:
        self._table_path.unlink(missing_ok=True)  # first: no table may vouch for an empty file
        with self.partial.open("wb") as file:
            file.truncate(size)
        table = PartTable(size, part_bytes)
        draft = self._table_path.with_name(self._table_path.name + ".tmp")
        draft.write_bytes(table.encode())
        draft.rename(self._table_path)
        return table


def stale_names(names: Sequence[str], keys: set[str]) -> list[str]:
    """Of the names in a staging folder, those that belong to none of `keys`."""
    return [name for name in names if name.partition(".")[0] not in keys]


def _write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
