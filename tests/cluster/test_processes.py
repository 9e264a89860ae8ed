import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire_cluster.errors import NotReadyError
from quire_cluster.processes import ProcessSpec, ProcessTable, is_marked, wait_for

SLEEPER = ProcessSpec("sleeper", ("sleep", "60"))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[ProcessTable]:
    table = ProcessTable(tmp_path, tmp_path, tmp_path)
    yield table
    table.stop(table.names())


def test_a_started_program_is_found_and_ended(table: ProcessTable) -> None:
    table.start(SLEEPER)
    wait_for(lambda: table.runs_as(SLEEPER), "the sleeper", seconds=5)
    pid = table.pid("sleeper")
    table.start(SLEEPER)
    assert table.pid("sleeper") == pid
    table.stop(["sleeper"])
    assert table.pid("sleeper") is None
    table.stop(["sleeper"])


def test_nothing_of_the_starters_is_held_on_to(table: ProcessTable, tmp_path: Path) -> None:
    """A lock that a shell took around us, say: the program outlives the shell."""
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        table.start(SLEEPER)
        opened = [os.readlink(fd) for fd in Path(f"/proc/{table.pid('sleeper')}/fd").iterdir()]
    assert os.devnull in opened
    assert str(tmp_path / "lock") not in opened


def test_another_specification_is_noticed(table: ProcessTable) -> None:
    table.start(SLEEPER)
    assert not table.runs_as(ProcessSpec("sleeper", ("sleep", "61")))
    assert not table.runs_as(ProcessSpec("sleeper", ("sleep", "60"), inputs="newer code"))


def test_a_foreign_pid_is_never_ours(table: ProcessTable, tmp_path: Path) -> None:
    """After a crash a pid file may name a process of somebody else: here, this test."""
    (tmp_path / "sleeper.pid").write_text(f"{os.getpid()}\n")
    assert table.pid("sleeper") is None
    table.stop(["sleeper"])  # would end the test


@pytest.mark.parametrize("content", ["", "no number"])
def test_a_half_written_pid_file_is_none(table: ProcessTable, tmp_path: Path, content: str) -> None:
    (tmp_path / "sleeper.pid").write_text(content)
    assert table.pid("sleeper") is None


def test_a_program_that_ends_is_not_alive(table: ProcessTable) -> None:
    """It stays as a zombie of this test, which must not pass for life."""
    table.start(ProcessSpec("short", ("sh", "-c", "echo said >&2")))
    wait_for(lambda: table.pid("short") is None, "the end", seconds=5)
    assert table.last_lines("short") == "said"


def test_a_program_that_execs_is_alive(table: ProcessTable) -> None:
    """Between the old program and the new one /proc shows no environment for a moment."""
    again = '[ "$1" -eq 0 ] && exec sleep 60; exec sh -c "$0" "$0" $(($1 - 1))'
    table.start(ProcessSpec("chain", ("sh", "-c", again, again, "500")))
    pid = table.pid("chain")
    assert pid is not None
    program = Path(f"/proc/{pid}/cmdline")
    while not program.read_bytes().startswith(b"sleep"):
        assert table.pid("chain") == pid


def test_waiting_ends() -> None:
    start = time.monotonic()
    with pytest.raises(NotReadyError, match=r"the moon did not come within 0\.1 s"):
        wait_for(lambda: False, "the moon", seconds=0.1)
    assert time.monotonic() - start < 5


def test_no_process_no_mark() -> None:
    assert not is_marked(2**22 + 1, "anything")
