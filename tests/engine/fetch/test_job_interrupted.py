"""Fetches that are killed, cut off or kept waiting go on where they were."""

import errno
import fcntl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire_cluster.hub import Faults
from quire_cluster.hub_repos import Repositories

Served = Callable[[str], dict[str, bytes]]
Start = Callable[..., subprocess.Popen[bytes]]
REPO = "org/tiny"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def start_in_a_process(fetch) -> Iterator[Start]:
    """Starts the fetch in a process of its own; what still runs in the end is killed."""
    children: list[subprocess.Popen[bytes]] = []

    def start(connections: int) -> subprocess.Popen[bytes]:
        code = f"""if True:
            from pathlib import Path
            from quire_engine.fetch import FetchOptions, SourceOptions, run_fetch

            source = SourceOptions(
                endpoint={fetch.mirror.url!r}, connections={connections}, part_bytes=131072
            )
            volume = Path({str(fetch.volume)!r})
            options = FetchOptions(uri="hf://{REPO}", directory=volume, source=source)
            raise SystemExit(run_fetch(options))
        """
        command = [sys.executable, "-c", code]
        children.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def test_killed_at_half_it_resumes_and_fetches_no_byte_twice(
    fetch, mirror, served: Served, start_in_a_process: Start
) -> None:
    total = sum(len(content) for content in served(REPO).values())
    mirror.faults(Faults(bytes_per_second=total // 3))
    child = start_in_a_process(connections=2)
    fetch.eventually(lambda: fetch.staged_bytes > total // 3)
    child.kill()
    child.wait()
    assert not (fetch.volume / "model").exists()
    assert not (fetch.volume / "manifest.json").exists()
    staged = fetch.staged_bytes
    fetch.eventually(lambda: mirror.num_sending == 0)  # and the log has what was sent
    mirror.faults()
    mirror.clear_log()
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert fetch.sent() == total - staged == fetch.message["bytesFetched"]


def test_a_pinned_commit_is_finished_though_the_branch_moved(
    fetch, mirror, served: Served, start_in_a_process: Start, repositories: Path
) -> None:
    """The operator pins the first attempt's commit: the later ones are given it."""
    pinned = Repositories(repositories).resolve(REPO, "main")
    assert pinned is not None
    total = sum(len(content) for content in served(REPO).values())
    mirror.faults(Faults(bytes_per_second=total // 3))
    child = start_in_a_process(connections=2)
    fetch.eventually(lambda: fetch.staged_bytes > total // 3)
    child.kill()
    child.wait()
    staged = fetch.staged_bytes
    fetch.eventually(lambda: mirror.num_sending == 0)
    mirror.faults(Faults(main={REPO: "v2"}))
    mirror.clear_log()
    assert fetch(revision=pinned.id) == 0
    assert fetch.installed == served(REPO)
    assert fetch.manifest["commit"] == pinned.id
    assert fetch.sent() == total - staged


def test_sigterm_ends_it_and_keeps_what_came(
    fetch, mirror, served: Served, start_in_a_process: Start
) -> None:
    mirror.faults(Faults(bytes_per_second=600_000))
    child = start_in_a_process(connections=2)
    fetch.eventually(lambda: fetch.staged_bytes > 300_000)
    child.terminate()
    assert child.wait(60) == 143
    mirror.faults()
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_two_fetches_on_one_volume_take_turns(
    fetch, mirror, served: Served, start_in_a_process: Start
) -> None:
    total = sum(len(content) for content in served(REPO).values())
    mirror.faults(Faults(bytes_per_second=2 * total))
    child = start_in_a_process(connections=2)
    fetch.eventually(lambda: fetch.staged_bytes > 0)
    assert fetch() == 0
    assert child.wait(60) == 0
    assert fetch.message["bytesFetched"] == 0
    assert fetch.sent() == total
    assert fetch.installed == served(REPO)


def test_a_volume_without_locks_is_served_all_the_same(fetch, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert fetch() == 0


def test_cut_connections_resume_where_they_were_cut(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(cut_after_bytes=100_000))
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert fetch.sent() == sum(len(content) for content in served(REPO).values())


def test_a_silent_source_is_stalled(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(path=".safetensors", stall_after_bytes=1000))
    begin = time.monotonic()
    assert fetch(source={"stall_seconds": 0.6}) == 10
    assert time.monotonic() - begin < 5
    assert fetch.message["reason"] == "Stalled"
    mirror.faults()
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_one_silence_is_waited_out(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(path=SHARD, stall_after_bytes=1000, times=1))
    assert fetch(source={"stall_seconds": 3.0}) == 0
    assert fetch.installed == served(REPO)
