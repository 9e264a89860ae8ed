"""The bookkeeping of half-fetched files."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quire_engine.fetch.parts import PartFile, PartTable, stale_names

SIZES = st.integers(0, 200)
PARTS = st.integers(9, 70)


@st.composite
def tables(draw: st.DrawFn) -> PartTable:
    table = PartTable(draw(SIZES), draw(PARTS))
    for part in range(len(table.done)):
        table.advance(part, draw(st.integers(0, table.length(part))))
    return table


@given(tables())
def test_missing_and_done_make_the_whole(table: PartTable) -> None:
    missing = table.missing()
    assert sum(span.stop - span.start for span in missing) + table.bytes_done == table.size
    assert all(span.start < span.stop for span in missing)
    assert all(a.stop <= b.start for a, b in pairwise(missing))


@given(tables())
def test_a_table_survives_its_encoding(table: PartTable) -> None:
    assert PartTable.decode(table.encode(), table.size) == table


@given(tables(), st.data())
def test_damaged_tables_are_refused_or_sound(table: PartTable, data: st.DataObject) -> None:
    """Truncation is always seen; other damage never yields a table that breaks its invariants."""
    encoded = bytearray(table.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    assert PartTable.decode(bytes(encoded[:at]), table.size) is None
    encoded[at] ^= data.draw(st.integers(1, 255))
    damaged = PartTable.decode(bytes(encoded), table.size)
    if damaged is not None:
        damaged.check_integrity()


@given(st.binary(max_size=200), SIZES)
def test_noise_is_no_table(noise: bytes, size: int) -> None:
    assert PartTable.decode(noise, size) is None


class KilledDownloads(RuleBasedStateMachine):
    """A download whose process is killed at any moment, even between a write and its record."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "blob"
        self.content = bytes(i * 7 % 251 for i in range(1003))
        self.file = PartFile(self.path, len(self.content), 100)

    @precondition(lambda self: self.file.table.missing())
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        span = data.draw(st.sampled_from(self.file.table.missing()))
        size = data.draw(st.integers(1, span.stop - span.start))
        self.file.write(span.part, self.content[span.start : span.start + size])

    @rule()
    def be_killed(self) -> None:
        self.file.close()
        before = self.file.table
        self.file = PartFile(self.path, len(self.content), 100)
        assert self.file.table == before

    @precondition(lambda self: self.file.table.missing())
    @rule(data=st.data())
    def be_killed_before_the_record(self, data: st.DataObject) -> None:
        span = data.draw(st.sampled_from(self.file.table.missing()))
        with self.file.partial.open("r+b") as partial:
            partial.seek(span.start)
            partial.write(b"?")
        self.be_killed()

    @rule()
    def lose_the_table(self) -> None:
        self.file.close()
        self.path.with_name("blob.parts").unlink()
        self.file = PartFile(self.path, len(self.content), 100)
        assert self.file.table.bytes_done == 0

    @invariant()
    def what_the_table_claims_is_there(self) -> None:
        data, table = self.file.partial.read_bytes(), self.file.table
        assert len(data) == len(self.content)
        for part, done in enumerate(table.done):
            begin = part * table.part_bytes
            assert data[begin : begin + done] == self.content[begin : begin + done]

    def teardown(self) -> None:
        self.file.close()
        self.folder.cleanup()


def test_killed_downloads() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        KilledDownloads, settings=settings(max_examples=40, stateful_step_count=20, deadline=None)
    )


def test_stale_names_are_those_of_no_wanted_file() -> None:
    names = ["sha256-aa", "sha256-aa.parts", "sha256-bb.partial", "git-sha1-cc"]
    assert stale_names(names, {"sha256-aa"}) == ["sha256-bb.partial", "git-sha1-cc"]
