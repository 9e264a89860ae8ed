"""Archives that are read where they lie: good ones, and those that somebody made on purpose."""

import io
import tarfile
from collections.abc import Callable

import pytest

from quire_engine.fetch.archive import MOST_MEMBERS, Member, read_members
from quire_engine.fetch.errors import Corrupt, UnsupportedSource

Add = Callable[[tarfile.TarFile], None]


def packed(add: Add, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002  tarfile's name
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        add(tar)
    return buffer.getvalue()


def put(tar: tarfile.TarFile, name: str, content: bytes = b"{}", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def members_of(archive: bytes) -> list[Member]:
    return read_members(lambda start, stop: archive[start:stop], len(archive), "m.tar")


def contents_of(archive: bytes) -> dict[str, bytes]:
    return {
        member.path: archive[member.offset : member.offset + member.size]
        for member in members_of(archive)
    }


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "./", "model/", "./model/"])
def test_files_are_ranges_of_it(format: int, folder: str) -> None:  # noqa: A002
    files = {"config.json": b"{}", "a" * 60 + ".safetensors": b"x" * 1024, "empty.json": b""}

    def add(tar: tarfile.TarFile) -> None:
        if folder:
            put(tar, folder, b"", type=tarfile.DIRTYPE)
        for name, content in files.items():
            put(tar, folder + name, content)

    assert contents_of(packed(add, format)) == files


def test_long_names_are_read() -> None:
    name = "/".join(["d" * 200] * 3)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = contents_of(packed(lambda tar: (put(tar, "config.json"), put(tar, name))[0], form))
        assert set(found) == {"config.json", name}


def test_of_a_path_that_was_added_twice_the_last_is_taken() -> None:
    def add(tar: tarfile.TarFile) -> None:
        put(tar, "model/config.json", b"old")
        put(tar, "model/tokenizer.json", b"{}")
        put(tar, "./model/config.json", b"newer")

    members = members_of(packed(add))
    assert sorted(member.path for member in members) == ["config.json", "tokenizer.json"]
    assert contents_of(packed(add))["config.json"] == b"newer"


def test_little_is_read_of_it() -> None:
    archive, read = packed(lambda tar: put(tar, "model.safetensors", bytes(10_000_000))), []

    def spy(start: int, stop: int) -> bytes:
        read.append(stop - start)
        return archive[start:stop]

    read_members(spy, len(archive), "m.tar")
    assert sum(read) < 20_000


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("/etc/passwd", {}),
        ("../outside", {}),
        ("model/../../outside", {}),
        ("a\\b", {}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "config.json"}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "config.json"}),
        ("device", {"type": tarfile.CHRTYPE}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
        ("../", {"type": tarfile.DIRTYPE}),
    ],
)
def test_one_evil_member_spoils_all(name: str, fields: dict[str, object]) -> None:
    def add(tar: tarfile.TarFile) -> None:
        put(tar, "config.json")
        put(tar, name, b"", **fields)

    with pytest.raises(Corrupt, match="do not use this source"):
        members_of(packed(add))


def test_a_member_longer_than_the_archive_is_refused() -> None:
    archive = bytearray(packed(lambda tar: put(tar, "model.safetensors", bytes(4096))))
    archive[124:135] = b"77777777777"
    checksum = sum(archive[:148]) + 8 * 32 + sum(archive[156:512])
    archive[148:156] = f"{checksum:06o}\0 ".encode()
    with pytest.raises(Corrupt):
        members_of(bytes(archive))


@pytest.mark.parametrize("cut", [100, 512, 1000, 1024 + 100])
def test_a_cut_archive_is_refused(cut: int) -> None:
    archive = packed(lambda tar: (put(tar, "config.json"), put(tar, "b.json"))[0])
    with pytest.raises(Corrupt):
        members_of(archive[:cut])


def test_a_garbled_header_is_not_taken_for_the_end() -> None:
    archive = bytearray(packed(lambda tar: (put(tar, "config.json"), put(tar, "b.json"))[0]))
    archive[1024 + 150] ^= 1
    with pytest.raises(Corrupt, match="no end"):
        members_of(bytes(archive))


def test_what_is_no_tar_is_refused() -> None:
    with pytest.raises(Corrupt):
        members_of(b"<html>" * 1000)


def test_an_endless_header_is_not_read() -> None:
    """A header that announces gigabytes of extensions costs no memory."""

    def add(tar: tarfile.TarFile) -> None:
        put(tar, "././@LongLink", b"x" * 100_000, type=tarfile.GNUTYPE_LONGNAME)
        put(tar, "config.json")

    with pytest.raises(Corrupt, match="extended header"):
        members_of(packed(add, tarfile.GNU_FORMAT))


def test_too_many_members_are_refused() -> None:
    def add(tar: tarfile.TarFile) -> None:
        for number in range(MOST_MEMBERS + 1):
            put(tar, f"{number}.json", b"")

    with pytest.raises(UnsupportedSource, match="1000"):
        members_of(packed(add))
