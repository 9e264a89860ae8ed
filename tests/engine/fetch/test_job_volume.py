"""What becomes of a volume: full, replaced, mended, and killed in the middle of that."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.tiny_models import write_tiny_model
from quire_engine.errors import ModelCorrupt
from quire_engine.fetch.manifest import check_model
from quire_engine.fetch.store import Store

Served = Callable[[str], dict[str, bytes]]
REPO = "org/tiny"
SHARD = "model-00002-of-00003.safetensors"


# ---- the volume ---------------------------------------------------------------------------------


def test_too_little_space_is_said_before_the_first_byte_of_weights(
    fetch, mirror, monkeypatch
) -> None:
    real = os.statvfs(fetch.volume)
    fields = list(real)
    fields[4] = 1_000_000 // real.f_frsize  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert fetch() == 10
    assert fetch.message["reason"] == "NoSpace"
    assert " MB more" in fetch.message["message"]
    assert mirror.downloads(".safetensors") == ()


def test_a_volume_that_fills_midway_is_no_space_and_resumes(
    fetch, served: Served, monkeypatch
) -> None:
    write, left = os.pwrite, [1_500_000]

    def full_soon(descriptor: int, data: memoryview, offset: int) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[: left[0]], offset)
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_soon)
        assert fetch() == 10
    assert fetch.message["reason"] == "NoSpace"
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_a_volume_that_cannot_be_written_says_what_to_do(fetch, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert fetch() == 10
    assert fetch.message["reason"] == "Internal"
    assert "fsGroup" in fetch.message["message"]


# ---- replacing and mending ----------------------------------------------------------------------


def test_a_moved_branch_fetches_only_what_changed(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    before = fetch.manifest["commit"]
    mirror.clear_log()
    mirror.faults(Faults(main={REPO: "v2"}))
    assert fetch() == 0
    assert fetch.installed == served("org/tiny@v2")
    assert fetch.manifest["commit"] != before
    assert {entry.path.rpartition("/")[2] for entry in mirror.downloads()} == {
        SHARD,
        "tokenizer.json",
    }


def test_a_failed_move_leaves_the_good_copy(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    mirror.faults(Faults(main={REPO: "v2"}, status=500))
    assert fetch() == 10
    assert fetch.installed == served(REPO)
    assert check_model(fetch.volume / "model") is not None
    assert fetch(verify=True) == 0


def test_a_branch_that_moves_midway_changes_nothing_of_this_run(
    fetch, mirror, served: Served
) -> None:
    mirror.faults(Faults(bytes_per_second=6_000_000))
    mover = threading.Thread(
        target=lambda: (
            fetch.eventually(lambda: mirror.downloads() != ()),
            mirror.faults(Faults(main={REPO: "v2"})),
        )
    )
    mover.start()
    assert fetch() == 0
    mover.join()
    assert fetch.installed == served(REPO)


def test_open_files_outlive_a_replacement(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    with (fetch.volume / "model" / SHARD).open("rb") as reader:
        mirror.faults(Faults(main={REPO: "v2"}))
        assert fetch() == 0
        assert reader.read() == served(REPO)[SHARD]


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_byte_is_found_and_only_that_file_mended(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    flip_byte(fetch.volume / "model" / SHARD, 500_000)
    mirror.clear_log()
    assert fetch(verify=True) == 10
    assert fetch.message["reason"] == "Corrupt"
    assert SHARD in fetch.message["message"]
    assert fetch(repair=True) == 0
    assert fetch.installed == served(REPO)
    assert fetch.sent() == fetch.sent(SHARD) == len(served(REPO)[SHARD])


def test_a_cut_file_is_mended_by_a_plain_run(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    os.truncate(fetch.volume / "model" / SHARD, 1000)
    with pytest.raises(ModelCorrupt):
        check_model(fetch.volume / "model")
    mirror.clear_log()
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert fetch.sent() == len(served(REPO)[SHARD])


def test_a_repair_stays_with_the_commit_that_runs(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    flip_byte(fetch.volume / "model" / SHARD, 500_000)
    mirror.faults(Faults(main={REPO: "v2"}))
    assert fetch(repair=True) == 0
    assert fetch.installed == served(REPO)


def test_a_repair_with_nothing_to_mend_touches_nothing(fetch, mirror) -> None:
    assert fetch() == 0
    before = (fetch.volume / "model").stat().st_ino
    mirror.clear_log()
    assert fetch(repair=True) == 0
    assert mirror.downloads() == ()
    assert (fetch.volume / "model").stat().st_ino == before
    assert not (fetch.volume / ".staging").exists()


def test_a_message_that_cannot_be_written_spoils_no_fetch(
    fetch, monkeypatch, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(fetch.volume))
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert "no termination message" in caplog.text


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def killed_repair(fetch, monkeypatch) -> Callable[[], None]:
    """A repair that is killed once everything is staged."""

    def killed(*_: object) -> None:
        raise Killed

    def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "stage_model", killed)
            with pytest.raises(Killed):
                fetch(repair=True)

    return run


def test_what_a_killed_repair_had_fetched_is_installed_by_the_next(
    fetch, mirror, served: Served, killed_repair: Callable[[], None]
) -> None:
    assert fetch() == 0
    flip_byte(fetch.volume / "model" / SHARD, 500_000)
    killed_repair()
    mirror.clear_log()
    assert fetch(repair=True) == 0
    assert fetch.installed == served(REPO)
    assert mirror.downloads() == ()


def test_a_byte_that_flips_after_a_killed_repair_is_found_too(
    fetch, served: Served, killed_repair: Callable[[], None]
) -> None:
    """The killed one had staged that file as a second name of the installed one."""
    assert fetch() == 0
    flip_byte(fetch.volume / "model" / SHARD, 500_000)
    killed_repair()
    flip_byte(fetch.volume / "model" / "model-00001-of-00003.safetensors", 500_000)
    assert fetch(repair=True) == 0
    assert fetch.installed == served(REPO)


TWINS = ("added_tokens.json", "special_tokens_map.json")


@pytest.mark.parametrize("bad", TWINS)
def test_of_two_files_with_the_same_content_the_bad_one_is_mended(
    fetch, tmp_path: Path, bad: str
) -> None:
    folder = write_tiny_model(tmp_path / "hub/org/twins")
    for name in TWINS:
        (folder / name).write_text("{}")
    with running_mirror(tmp_path / "hub") as twins:
        source = {"endpoint": twins.url}
        assert fetch("hf://org/twins", source=source) == 0
        (fetch.volume / "model" / bad).unlink()  # a file of its own, as without hard links
        (fetch.volume / "model" / bad).write_text("{]")
        assert fetch("hf://org/twins", repair=True, source=source) == 0
    assert fetch.installed == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("step", range(5))
def test_killed_between_any_two_renames_of_an_installation(
    fetch, mirror, served: Served, monkeypatch, step: int
) -> None:
    """Renames of an installation over an old model: manifest draft, old away, new in, manifest."""
    assert fetch() == 0
    mirror.faults(Faults(main={REPO: "v2"}))
    rename, install_began, count = Path.rename, [False], [0]

    def counted(self: Path, target: Path) -> Path:
        install_began[0] = install_began[0] or self.name == ".manifest.json.tmp"
        if install_began[0]:
            if count[0] == step:
                raise Killed
            count[0] += 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        if step < 4:
            with pytest.raises(Killed):
                fetch()
        else:
            assert fetch() == 0  # there are four
    mirror.clear_log()
    assert fetch() == 0
    assert fetch.installed == served("org/tiny@v2")
    assert mirror.downloads() == ()
    assert fetch(verify=True) == 0


def test_killed_after_an_installation_the_old_model_does_not_stay(
    fetch, mirror, served: Served, monkeypatch
) -> None:
    assert fetch() == 0
    mirror.faults(Faults(main={REPO: "v2"}))

    def killed(store: Store) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "drop_staging", killed)
        with pytest.raises(Killed):
            fetch()
    assert (fetch.volume / ".staging" / "previous").is_dir()
    assert fetch() == 0
    assert fetch.installed == served("org/tiny@v2")
    assert not (fetch.volume / ".staging" / "previous").exists()


@pytest.mark.parametrize("options", [{}, {"verify": True}, {"repair": True}])
def test_killed_after_an_installation_no_second_copy_stays(
    fetch, mirror, served: Served, monkeypatch, options: dict[str, bool]
) -> None:
    """On a volume without hard links, what is staged is that."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def killed(store: Store) -> None:
        raise Killed

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "drop_staging", killed)
        with pytest.raises(Killed):
            fetch()
    total = sum(len(content) for content in served(REPO).values())
    assert fetch.staged_bytes == total
    mirror.clear_log()
    assert fetch(**options) == 0
    assert sorted(path.name for path in fetch.volume.iterdir()) == ["manifest.json", "model"]
    assert fetch.installed == served(REPO)
    assert mirror.downloads() == ()


def test_a_source_that_goes_away_midway_costs_no_staged_byte(fetch, mirror, served: Served) -> None:
    """The complete model is kept, and so is the half of the next one."""
    assert fetch() == 0
    mirror.faults(Faults(main={REPO: "v2"}, path=SHARD, cut_after_bytes=100_000))
    assert fetch(source={"max_attempts": 1}) == 10
    staged = fetch.staged_bytes
    mirror.faults(Faults(main={REPO: "v2"}, listing=True, status=503, retry_after=0))
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert fetch.staged_bytes == staged
    mirror.faults(Faults(main={REPO: "v2"}))
    assert fetch() == 0
    assert fetch.installed == served("org/tiny@v2")
    assert fetch.message["bytesFetched"] == fetch.message["bytesTotal"] - staged
