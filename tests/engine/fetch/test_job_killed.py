"""Killed at twenty random moments: nothing that lies on the volume comes a second time."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from quire_cluster.hub import Faults, RunningMirror, running_mirror
from quire_cluster.hub_repos import Repositories
from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_engine.fetch import FetchOptions, SourceOptions, run_fetch
from quire_engine.fetch.parts import PartTable
from quire_engine.fetch.transfer import FLUSH_BYTES

REPO = "org/larger"
KILLS = 20
CONNECTIONS = 3
PART_BYTES = 1024**2
SLOW = 3_000_000  # bytes a second: the kills before the last few strike downloads
SOCKET_BYTES = 1024**2  # both ends' buffers of one connection, the mirror's own chunk included
LOST_BYTES = CONNECTIONS * (FLUSH_BYTES + SOCKET_BYTES)
"""What a kill may cost: what each connection holds that no table tells of yet."""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror's root with one model of 18 MB in three shards, of random bytes."""
    root = tmp_path_factory.mktemp("hub")
    shapes = TinyModel(hidden_size=512, intermediate_size=1024, num_heads=8, vocab_size=4096)
    write_tiny_model(root / REPO, shapes, num_shards=3)
    return root


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with everything imported: a fetch is under way after milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "quire_engine.fetch.job"])
    return context


@pytest.fixture
def mirror(larger: Path) -> Iterator[RunningMirror]:
    with running_mirror(larger) as mirror:
        yield mirror


def vouched(volume: Path, larger: Path) -> dict[str, set[int]]:
    """Pieces of 4 KiB of each file that the volume vouches for, whole ones only."""
    commit = Repositories(larger).resolve(REPO, "main")
    assert commit is not None
    found: dict[str, set[int]] = {}
    for file in commit.files:
        staged = volume / ".staging/blobs" / f"sha256-{file.sha256}"
        installed = volume / "model" / file.path
        if staged.exists() or installed.exists():
            found[file.path] = set(range(file.size // 4096))
        elif (table := staged.with_name(staged.name + ".parts")).exists():
            found[file.path] = _pieces(PartTable.decode(table.read_bytes(), file.size))
    return found


def _pieces(table: PartTable | None) -> set[int]:
    assert table is not None, "a table that a kill has left is sound"
    begins = range(0, table.size, table.part_bytes)
    spans = zip(begins, table.done, strict=True)
    return {p for begin, done in spans for p in range(begin // 4096, (begin + done) // 4096)}


def count(pieces: dict[str, set[int]]) -> int:
    return 4096 * sum(len(of_file) for of_file in pieces.values())


def asked_for(mirror: RunningMirror) -> dict[str, set[int]]:
    """Pieces that lie wholly in a range that was asked for."""
    found: dict[str, set[int]] = {}
    for entry in mirror.downloads(".safetensors"):
        assert entry.start is not None
        assert entry.end is not None
        pieces = range(-(-entry.start // 4096), (entry.end + 1) // 4096)
        found.setdefault(entry.path.rpartition("/")[2], set()).update(pieces)
    return found


def test_killed_at_twenty_moments_nothing_comes_twice(
    larger: Path, mirror: RunningMirror, processes: ForkServerContext, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    chance = random.Random(seed)
    volume = tmp_path / "volume"
    volume.mkdir()
    served = {path.name: path.read_bytes() for path in (larger / REPO).iterdir()}
    before, lengths = vouched(volume, larger), set()
    for number in range(KILLS + 1):
        slow = number < KILLS - 5
        mirror.faults(Faults(bytes_per_second=SLOW if slow else None))
        mirror.clear_log()
        child = fetching(processes, mirror.url, volume)
        if number < KILLS:
            if number % 5:  # the others are killed at the begin, or beside the listing
                wait_until_it_receives(child, mirror)
            child.join(chance.uniform(0.0, 0.6 if slow else 0.1))
            child.kill()
        child.join(60)
        wait_for(lambda: mirror.num_sending == 0)  # it has noticed that its client is gone
        asked = asked_for(mirror)
        again = {path: asked[path] & before[path] for path in asked.keys() & before.keys()}
        assert not any(again.values()), f"seed {seed}: kill {number}: asked for what was there"
        after = vouched(volume, larger)
        sent = sum(entry.bytes for entry in mirror.downloads(".safetensors"))
        assert sent - (count(after) - count(before)) <= LOST_BYTES, f"seed {seed}: kill {number}"
        before = after
        lengths.add(count(after))
        complete = (volume / "manifest.json").exists()
        assert complete or not (volume / "model").exists(), f"seed {seed}: half of it is served"
    assert len(lengths) >= 4, f"seed {seed}: the kills struck nothing under way"
    installed = {path.name: path.read_bytes() for path in (volume / "model").iterdir()}
    assert installed == served
    assert sorted(path.name for path in volume.iterdir()) == ["manifest.json", "model"]


def fetching(processes: ForkServerContext, url: str, volume: Path) -> ForkServerProcess:
    source = SourceOptions(endpoint=url, connections=CONNECTIONS, part_bytes=PART_BYTES)
    options = FetchOptions(uri=f"hf://{REPO}", directory=volume, source=source)
    child = processes.Process(target=run_fetch, args=(options,))
    child.start()
    return child


def wait_until_it_receives(child: ForkServerProcess, mirror: RunningMirror) -> None:
    wait_for(lambda: mirror.num_sending > 0 or child.exitcode is not None)


def wait_for(holds: Callable[[], bool]) -> None:
    """Something that another process or thread is about to do."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)
