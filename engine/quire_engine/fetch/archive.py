"""A model's folder in a tar archive that is never unpacked: where its files lie, and which may be.

A tar is its files' contents with a 512-byte header before each, so that a file in it is a range of
it. Whoever reads the headers by range requests can fetch, go on with and plan a model in an archive
as if its files were offered one by one.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from quire_engine.fetch.errors import Corrupt, UnsupportedSource
from quire_engine.fetch.uri import is_safe_path

ReadRange: TypeAlias = Callable[[int, int], bytes]
MOST_MEMBERS = 1000  # a request each; a model has dozens
LONGEST_NAME = 64 * 1024  # of an extended header
MOST_HEADER_BYTES = 16 * 1024**2
READ_AHEAD = 4096  # tarfile asks for one byte, then for a header
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


@dataclass(frozen=True)
class Member:
    """One file in an archive: its path in the model's folder, and its bytes in the archive."""

    path: str
    offset: int
    size: int


def read_members(read: ReadRange, size: int, name: str) -> list[Member]:
    """The files of the archive `name` of `size` bytes; a folder around all of them is left out.

    Nothing of an archive with links, devices or names that leave the folder is taken: Corrupt.
    """
    ranges = _Ranges(read, size)
    try:
        with tarfile.open(fileobj=ranges, mode="r:", tarinfo=_Header) as tar:  # type: ignore[call-overload]
            # Of a path that stands there twice (`tar -r`) the last is the file, as for `tar -x`.
            members = {member.path: member for member in _files(tar, size, name)}
            ranges.seek(tar.offset)
            if ranges.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end after its last member")  # tarfile lets that pass
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Corrupt(f"{name} must be a whole tar archive, got one that is not: {error}") from None
    return _without_outer_folder(list(members.values()))


def _files(tar: tarfile.TarFile, size: int, name: str) -> Iterator[Member]:
    for count, member in enumerate(tar, 1):
        if count > MOST_MEMBERS:
            raise UnsupportedSource(
                f"{name} must have at most {MOST_MEMBERS} members, got more; pack the model alone"
            )
        path = member.name.removeprefix("./")
        if member.isdir() and (path in ("", ".") or is_safe_path(path)):
            continue
        if not member.isreg() or member.issparse() or not is_safe_path(path):
            raise Corrupt(
                f"{name} must hold plain files inside its folder, got {path[:200]!r} "
                f"({_kind(member)}); do not use this source, or pack it with `tar --dereference`"
            )
        if member.offset_data + member.size > size:
            raise Corrupt(f"{name} must hold all of {path!r}, got an archive that ends before it")
        yield Member(path, member.offset_data, member.size)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    return "a file" if member.isreg() or member.isdir() else "neither file nor folder"


def _without_outer_folder(members: list[Member]) -> list[Member]:
    tops = {member.path.partition("/")[0] for member in members}
    if len(tops) != 1 or any("/" not in member.path for member in members):
        return members
    return [Member(member.path.partition("/")[2], member.offset, member.size) for member in members]


class _Header(tarfile.TarInfo):
    """A member's header, whose extensions are bounded before they are read as a whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        if self.type in _EXTENSIONS and self.size > LONGEST_NAME:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]


class _Ranges:
    """What tarfile asks of a file, over range reads of some kilobytes each."""

    def __init__(self, read: ReadRange, size: int) -> None:
        self._read, self._size, self._at, self._left = read, size, 0, MOST_HEADER_BYTES
        self._start, self._block = 0, b""

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        self._at = position
        return position

    def read(self, num_bytes: int) -> bytes:
        start, stop = self._at, min(self._at + num_bytes, self._size)
        if start >= stop:
            return b""
        if not self._start <= start <= stop <= self._start + len(self._block):
            self._start, self._block = start, self._fetch(start, stop)
        self._at = stop
        return self._block[start - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> bytes:
        stop = min(max(stop, start + READ_AHEAD), self._size)
        self._left -= stop - start
        if self._left < 0:
            raise tarfile.ReadError(f"more than {MOST_HEADER_BYTES:,} bytes of headers")
        return self._read(start, stop)
