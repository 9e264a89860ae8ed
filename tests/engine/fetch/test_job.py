"""Whole runs of the fetch against the mirror: what is on the volume, and what was sent for it."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from quire_cluster.hub import Faults, RunningMirror, running_mirror
from quire_cluster.tiny_models import write_tiny_model
from quire_engine.errors import ModelCorrupt
from quire_engine.fetch import FetchOptions, SourceOptions, run_fetch
from quire_engine.fetch.manifest import check_model
from quire_engine.fetch.store import Store

Served = Callable[[str], dict[str, bytes]]
REPO = "org/tiny"
SHARD = "model-00002-of-00003.safetensors"


def sent(mirror: RunningMirror, suffix: str = "") -> int:
    return sum(entry.bytes for entry in mirror.downloads(suffix))


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


# ---- the good case ------------------------------------------------------------------------------


def test_brings_what_serving_needs_and_nothing_else(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    total = sum(len(content) for content in served(REPO).values())
    assert fetch.message["bytesTotal"] == fetch.message["bytesFetched"] == total
    assert fetch.manifest["commit"] == fetch.message["commit"]
    assert {f["path"] for f in fetch.manifest["files"]} == set(served(REPO))
    assert sorted(p.name for p in fetch.volume.iterdir()) == ["manifest.json", "model"]
    assert sent(mirror) == total
    assert check_model(fetch.volume / "model") is not None


def test_the_message_carries_the_memory_plan(fetch) -> None:
    assert fetch() == 0
    from quire_cluster.tiny_models import TinyModel

    assert fetch.message["plan"] == {
        "weightBytes": 2 * TinyModel().parameters,
        "kvBytesPerToken": 2 * 2 * 2 * 64 * 2,  # K and V, layers, heads, head size, bfloat16
        "maxModelLen": 512,
    }


def test_everybody_may_read_the_model(fetch) -> None:
    before = os.umask(0o077)
    try:
        assert fetch() == 0
    finally:
        os.umask(before)
    assert (fetch.volume / "model").stat().st_mode & 0o777 == 0o755
    for path in (*(fetch.volume / "model").iterdir(), fetch.volume / "manifest.json"):
        assert path.stat().st_mode & 0o777 == 0o644


def test_a_second_run_downloads_nothing(fetch, mirror) -> None:
    assert fetch() == 0
    mirror.clear_log()
    assert fetch() == 0
    assert mirror.downloads() == ()
    assert fetch.message["bytesFetched"] == 0


def test_a_complete_volume_needs_no_source(fetch, served: Served) -> None:
    assert fetch() == 0
    fetch.mirror.faults(Faults(listing=True, status=503, retry_after=0))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_a_lost_manifest_costs_no_download(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    (fetch.volume / "manifest.json").unlink()
    mirror.clear_log()
    assert fetch() == 0
    assert mirror.downloads() == ()
    assert fetch.installed == served(REPO)


def test_redirects_to_signed_addresses_are_followed(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(redirect=True))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_a_revision_is_what_it_names(fetch, served: Served) -> None:
    assert fetch(revision="v2") == 0
    assert fetch.installed == served("org/tiny@v2")
    assert fetch.manifest["revision"] == "v2"


# ---- killed, cut, silent ------------------------------------------------------------------------


Start = Callable[..., subprocess.Popen[bytes]]


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
    wait_until(lambda: staged_bytes(fetch.volume) > total // 3)
    child.kill()
    child.wait()
    assert not (fetch.volume / "model").exists()
    assert not (fetch.volume / "manifest.json").exists()
    staged = staged_bytes(fetch.volume)
    mirror.faults()
    mirror.clear_log()
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert sent(mirror) == total - staged == fetch.message["bytesFetched"]


def staged_bytes(volume: Path) -> int:
    """Bytes that the part tables and finished files on the volume vouch for. While a fetch runs,
    a file that it finishes during the count is left out of it."""
    return sum(_vouched_bytes(path) for path in volume.glob(".staging/blobs/*"))


def _vouched_bytes(path: Path) -> int:
    from quire_engine.fetch.parts import PartTable

    try:
        if path.suffix == "":
            return path.stat().st_size
        if path.suffix != ".parts":
            return 0
        size = path.with_suffix(".partial").stat().st_size
        table = PartTable.decode(path.read_bytes(), size)
    except FileNotFoundError:  # renamed to its final name
        return 0
    assert table is not None
    return table.bytes_done


def test_sigterm_ends_it_and_keeps_what_came(
    fetch, mirror, served: Served, start_in_a_process: Start
) -> None:
    mirror.faults(Faults(bytes_per_second=600_000))
    child = start_in_a_process(connections=2)
    wait_until(lambda: staged_bytes(fetch.volume) > 300_000)
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
    wait_until(lambda: staged_bytes(fetch.volume) > 0)
    assert fetch() == 0
    assert child.wait(60) == 0
    assert fetch.message["bytesFetched"] == 0
    assert sent(mirror) == total
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
    assert sent(mirror) == sum(len(content) for content in served(REPO).values())


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
    assert fetch(source={"stall_seconds": 0.6}) == 0
    assert fetch.installed == served(REPO)


# ---- a source that lies -------------------------------------------------------------------------


def test_one_wrong_byte_is_fetched_again(fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(path=SHARD, flip_byte_at=1000, times=1))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_a_wrong_byte_in_a_small_file_is_seen_too(fetch, mirror, served: Served) -> None:
    """Files outside LFS are known by git's digest alone."""
    mirror.faults(Faults(path="config.json", flip_byte_at=20, times=1))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_lasting_wrong_bytes_are_corrupt_and_never_installed(fetch, mirror) -> None:
    mirror.faults(Faults(path=SHARD, flip_byte_at=1000))
    assert fetch() == 10
    assert fetch.message["reason"] == "Corrupt"
    assert SHARD in fetch.message["message"]
    assert not (fetch.volume / "model").exists()
    mirror.faults()
    assert fetch() == 0


@pytest.mark.parametrize("delta", [-100, 100])
def test_a_wrong_length_is_corrupt(fetch, mirror, delta: int) -> None:
    mirror.faults(Faults(path=SHARD, length_delta=delta))
    assert fetch() == 10
    assert fetch.message["reason"] == "Corrupt"


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/../../b", "a\\b"])
def test_names_that_leave_the_folder_are_refused(fetch, mirror, name: str) -> None:
    mirror.faults(Faults(extra_siblings=(name,)))
    assert fetch() == 10
    assert fetch.message["reason"] == "Corrupt"
    assert mirror.downloads() == ()


# ---- a source that refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "token", "reason"),
    [
        (Faults(hidden=(REPO,)), None, "SourceNotFound"),
        (Faults(hidden=(REPO,)), "some-token", "SourceNotFound"),
        (Faults(tokens={REPO: "right"}), None, "SourceNotFound"),
        (Faults(tokens={REPO: "right"}), "wrong-token", "SourceUnauthorized"),
        (Faults(gated=(REPO,)), "some-token", "SourceUnauthorized"),
        (Faults(status=403), None, "SourceUnauthorized"),
        (Faults(status=404), None, "SourceNotFound"),
        (Faults(status=418), None, "SourceUnreachable"),
        (Faults(status=500), None, "SourceUnreachable"),
        (Faults(status=500, listing=True), None, "SourceUnreachable"),
    ],
)
def test_refusals_have_their_reasons(
    fetch, mirror, capfd, faults: Faults, token: str | None, reason: str
) -> None:
    mirror.faults(faults)
    assert fetch(source={"token": token}) == 10
    assert fetch.message["reason"] == reason
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("quire-engine: ")
    assert token is None or token not in said + fetch.termination.read_text()


def test_no_such_revision(fetch) -> None:
    assert fetch(revision="nowhere") == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert "nowhere" in fetch.message["message"]


def test_nobody_answers(fetch) -> None:
    source = SourceOptions(endpoint="http://127.0.0.1:9", backoff_seconds=0.001)
    options = FetchOptions(uri=f"hf://{REPO}", directory=fetch.volume, source=source)
    assert run_fetch(options) == 10
    assert fetch.message["reason"] == "SourceUnreachable"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_waited_out(fetch, mirror, served: Served, status: int) -> None:
    mirror.faults(Faults(status=status, times=2, retry_after=0.01))
    assert fetch() == 0
    assert fetch.installed == served(REPO)


def test_passing_errors_of_the_listing_are_waited_out(fetch, mirror) -> None:
    mirror.faults(Faults(status=429, times=2, retry_after=0, listing=True))
    assert fetch() == 0


def test_the_right_token_opens_and_is_written_nowhere(fetch, mirror, capfd) -> None:
    mirror.faults(Faults(tokens={REPO: "right-token"}))
    assert fetch(source={"token": "right-token"}) == 0
    written = [path.read_bytes() for path in fetch.volume.rglob("*") if path.is_file()]
    written += [fetch.termination.read_bytes(), capfd.readouterr().err.encode()]
    assert not any(b"right-token" in content for content in written)


def test_the_token_is_not_carried_to_another_host(fetch, mirror, served: Served) -> None:
    elsewhere = mirror.url.replace("127.0.0.1", "localhost")
    mirror.faults(Faults(tokens={REPO: "right-token"}, redirect=True, redirect_to=elsewhere))
    assert fetch(source={"token": "right-token"}) == 0
    assert fetch.installed == served(REPO)
    by_token = {entry.authorized: entry.path for entry in mirror.downloads(".safetensors")}
    assert set(by_token) == {False}
    assert by_token[False].startswith("/_signed/")


@pytest.mark.parametrize("uri", ["s3://bucket/model", "org/model", "hf://model", "hf://a/b/c.bin"])
def test_uris_of_no_known_kind_end_with_2(fetch, uri: str) -> None:
    assert fetch(uri) == 2
    assert uri in fetch.message["message"]


def test_an_unsupported_model_is_refused_before_its_weights(fetch, mirror) -> None:
    assert fetch("hf://org/other") == 10
    assert fetch.message["reason"] == "UnsupportedModel"
    assert "MambaForCausalLM" in fetch.message["message"]
    assert mirror.downloads(".safetensors") == ()


def test_a_config_without_the_shapes_is_refused_before_the_weights(fetch, tmp_path: Path) -> None:
    repository = write_tiny_model(tmp_path / "hub/org/model")
    (repository / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with running_mirror(tmp_path / "hub") as mirror:
        assert fetch("hf://org/model", source={"endpoint": mirror.url}) == 10
        assert mirror.downloads(".safetensors") == ()
    assert fetch.message["reason"] == "UnsupportedModel"
    assert "hf://org/model" in fetch.message["message"]


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
            wait_until(lambda: mirror.downloads() != ()),
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
    assert sent(mirror) == sent(mirror, SHARD) == len(served(REPO)[SHARD])


def test_a_cut_file_is_mended_by_a_plain_run(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    os.truncate(fetch.volume / "model" / SHARD, 1000)
    with pytest.raises(ModelCorrupt):
        check_model(fetch.volume / "model")
    mirror.clear_log()
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert sent(mirror) == len(served(REPO)[SHARD])


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


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


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
    assert staged_bytes(fetch.volume) == total
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
    staged = staged_bytes(fetch.volume)
    mirror.faults(Faults(main={REPO: "v2"}, listing=True, status=503, retry_after=0))
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    assert staged_bytes(fetch.volume) == staged
    mirror.faults(Faults(main={REPO: "v2"}))
    assert fetch() == 0
    assert fetch.installed == served("org/tiny@v2")
    assert fetch.message["bytesFetched"] == fetch.message["bytesTotal"] - staged


# ---- GGUF ---------------------------------------------------------------------------------------


def test_a_missing_gguf_file_names_those_that_are_there(fetch) -> None:
    assert fetch(f"hf://{REPO}/model.Q4.gguf") == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert "no .gguf" in fetch.message["message"]


@pytest.mark.model
def test_one_gguf_file(fetch, tmp_path: Path) -> None:
    from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, prepare_model

    paths = prepare_model()
    uri = f"hf://{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}"
    with running_mirror(paths.hub) as mirror:
        options = FetchOptions(
            uri=uri, directory=fetch.volume, source=SourceOptions(endpoint=mirror.url)
        )
        assert run_fetch(options) == 0
    assert os.listdir(fetch.volume / "model") == [GGUF_NAME]
    assert fetch.message["plan"]["maxModelLen"] == 8192


# ---- telling ------------------------------------------------------------------------------------


def test_progress_is_served_while_it_runs(fetch, mirror, unused_port: int) -> None:
    mirror.faults(Faults(bytes_per_second=4_000_000))
    seen: list[dict[str, object]] = []

    def watch() -> None:
        wait_until(lambda: mirror.downloads("/config.json") != ())
        while not seen or seen[-1]["phase"] == "listing":
            seen.append(httpx2.get(f"http://127.0.0.1:{unused_port}/progress").json())
        mirror.faults()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert fetch(progress_port=unused_port) == 0
    watcher.join()
    report = seen[-1]
    assert report["phase"] == "downloading"
    assert report["bytesTotal"] == fetch.message["bytesTotal"]
    assert report["commit"] == fetch.message["commit"]
    assert 0 <= report["bytesDone"] < report["bytesTotal"]  # type: ignore[operator]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
