"""Whole runs of the fetch against the mirror: what is on the volume, and what was sent for it.

Beside this: interrupted runs, what sources do wrong, and what happens to volumes (test_job_*.py).
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, ModelPaths
from quire_engine.fetch import FetchOptions, SourceOptions, job, run_fetch
from quire_engine.fetch.manifest import check_model

Served = Callable[[str], dict[str, bytes]]
REPO = "org/tiny"


def test_brings_what_serving_needs_and_nothing_else(fetch, mirror, served: Served) -> None:
    assert fetch() == 0
    assert fetch.installed == served(REPO)
    total = sum(len(content) for content in served(REPO).values())
    assert fetch.message["bytesTotal"] == fetch.message["bytesFetched"] == total
    assert fetch.manifest["commit"] == fetch.message["commit"]
    assert {f["path"] for f in fetch.manifest["files"]} == set(served(REPO))
    assert sorted(p.name for p in fetch.volume.iterdir()) == ["manifest.json", "model"]
    assert fetch.sent() == total
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


# ---- GGUF ---------------------------------------------------------------------------------------


def test_a_missing_gguf_file_names_those_that_are_there(fetch) -> None:
    assert fetch(f"hf://{REPO}/model.Q4.gguf") == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert "no .gguf" in fetch.message["message"]


@pytest.mark.model
def test_one_gguf_file(fetch, smollm: ModelPaths, tmp_path: Path) -> None:
    uri = f"hf://{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}"
    with running_mirror(smollm.hub) as mirror:
        options = FetchOptions(
            uri=uri, directory=fetch.volume, source=SourceOptions(endpoint=mirror.url)
        )
        assert run_fetch(options) == 0
    assert os.listdir(fetch.volume / "model") == [GGUF_NAME]
    assert fetch.message["plan"]["maxModelLen"] == 8192


# ---- telling ------------------------------------------------------------------------------------


def test_progress_is_served_while_it_runs(
    fetch, mirror, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SMALL_BYTES", 10_000)  # the weights come after the other files
    mirror.faults(Faults(bytes_per_second=1_500_000))
    seen: list[dict[str, object]] = []

    def watch() -> None:
        fetch.eventually(lambda: mirror.downloads(".safetensors") != ())
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
    assert 0 < report["bytesDone"] < report["bytesTotal"]  # type: ignore[operator]
    assert report["bytesPerSecond"] > 0  # type: ignore[operator]
    assert report["etaSeconds"] > 0  # type: ignore[operator]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
