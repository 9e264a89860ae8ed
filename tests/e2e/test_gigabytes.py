"""Models of gigabytes on their way to a claim: killed, slow, and in little memory."""

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire_cluster import faults, kube, serving, sparse_models
from quire_cluster.faults import Hub

pytestmark = pytest.mark.e2e

KILLS = 20
KILLS_SECONDS = 360
"""Most of it the pods' own starts. Waiting 10 s after each kill would cost 180 s more."""
SLOW = 30_000_000  # bytes a second
LOST_BYTES = 8 * 1024**2
"""A kill may cost each of 8 connections what is in the fetch's buffer (512 KiB) and, on a line so
slow that nothing piles up behind it, in the mirror's (256 KiB)."""
FETCH_LIMIT = "512Mi"
Record = Callable[[str, object], None]


@pytest.fixture
def two_gigabytes(hub_root: Path) -> str:
    """The URI of a model of 2 GB; the branch can move to its revision `moved`."""
    sparse_models.prepare(hub_root, "two-gigabytes@moved", sparse_models.SMALL, num_shards=1)
    name = "two-gigabytes"
    return f"hf://{sparse_models.prepare(hub_root, name, sparse_models.TWO_GB, num_shards=2)}"


@pytest.fixture
def eight_gigabytes(hub_root: Path) -> str:
    name = "eight-gigabytes"
    return f"hf://{sparse_models.prepare(hub_root, name, sparse_models.EIGHT_GB, num_shards=5)}"


@pytest.fixture(autouse=True)
def healthy(hub: Hub) -> Iterator[None]:
    yield
    hub.faults()


def test_two_gigabytes_whose_pod_is_killed_and_whose_branch_moves(
    namespace: str, hub: Hub, two_gigabytes: str, record_property: Record
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    chance = random.Random(seed)
    hub.clear_log()
    hub.faults(bytes_per_second=SLOW)
    kube.apply(serving.prefetched(two_gigabytes, "3Gi"), namespace)
    _kill_over_and_over(namespace, chance, record_property)
    listed, commit = _listings(hub), _commit(namespace)
    kube.wait_until(lambda: _listings(hub) > listed, 60, "the last attempt to have its listing")
    hub.faults(main={two_gigabytes.removeprefix("hf://"): "moved"})
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", 150)
    status = kube.get("inferenceservice", "chat", namespace)["status"]
    assert status["model"]["commit"] == commit
    total = status["model"]["bytesTotal"]
    assert total > 2e9
    served = hub.bytes_served()
    record_property("bytes_fetched_twice", served - total)
    assert total <= served <= total + KILLS * LOST_BYTES
    _check_files(namespace, total)
    assert set(_warned(namespace)) == {"Interrupted"}


def _kill_over_and_over(namespace: str, chance: random.Random, record_property: Record) -> None:
    began = time.monotonic()
    killed: set[str] = set()
    for _ in range(KILLS):
        pod = kube.wait_until(lambda: _fetching(namespace, killed), 60, "a fetch that runs")
        time.sleep(chance.uniform(0.5, 4.0))
        os.kill(faults.first_process(pod), signal.SIGKILL)
        killed.add(pod["metadata"]["name"])
        assert _manifests(namespace) == [], "half of a model is taken for whole"
        if len(killed) == 1:
            assert "the fetch was killed" in kube.wait_reason(namespace, "chat", "Interrupted", 15)
    seconds = time.monotonic() - began
    record_property("twenty_kills_seconds", f"{seconds:.0f}")
    assert seconds < KILLS_SECONDS


def _warned(namespace: str) -> list[str]:
    """The reasons that the operator told as Warnings."""
    events = kube.items("events", namespace)
    told = [e for e in events if e["involvedObject"]["kind"] == "InferenceService"]
    return [event["reason"] for event in told if event["type"] == "Warning"]


def _fetching(namespace: str, killed: set[str]) -> kube.Json | None:
    """The pod of an attempt that runs."""
    for pod in kube.items("pods", namespace, "app.kubernetes.io/component=fetch"):
        is_another = pod["metadata"]["name"] not in killed
        if is_another and _runs(pod) and faults.has_process(pod):
            return pod
    return None


def _listings(hub: Hub) -> int:
    """How often the mirror was asked what there is."""
    return sum("/api/models/" in entry["path"] for entry in hub.log())


def _runs(pod: kube.Json) -> bool:
    return bool(pod["status"]["phase"] == "Running")


def _commit(namespace: str) -> str:
    def found() -> str | None:
        service = kube.get("inferenceservice", "chat", namespace)
        commit: str | None = service["status"].get("model", {}).get("commit")
        return commit

    return kube.wait_until(found, 30, "the commit in status")


def _folder(namespace: str) -> Path:
    [claim] = kube.items("persistentvolumeclaims", namespace)
    return faults.volume_folder(namespace, claim["metadata"]["name"])


def _manifests(namespace: str) -> list[Path]:
    return [*_folder(namespace).glob("manifest.json"), *_folder(namespace).glob("model")]


def _check_files(namespace: str, total: int) -> None:
    """What lies on the volume is what its manifest says, byte by byte."""
    folder = _folder(namespace)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert sum(entry["size"] for entry in files) == total
    for entry in files:
        with (folder / "model" / entry["path"]).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]


def test_eight_gigabytes_are_fetched_in_half_a_gigabyte_of_memory(
    namespace: str, hub: Hub, eight_gigabytes: str, record_property: Record
) -> None:
    """The kernel enforces the limit: a fetch that needed more would be OOMKilled."""
    kube.apply(serving.prefetched(eight_gigabytes, "10Gi"), namespace)
    pod = kube.wait_until(lambda: _fetching(namespace, set()), 60, "a fetch that runs")
    [container] = pod["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == FETCH_LIMIT
    began = time.monotonic()
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", 400)
    record_property("eight_gigabytes_cached_seconds", f"{time.monotonic() - began:.0f}")
    status = kube.get("inferenceservice", "chat", namespace)["status"]
    assert status["model"]["bytesTotal"] > 8e9
    assert _attempts(namespace) == [1]
    _free(_folder(namespace))


def test_a_pod_that_fetches_eight_gigabytes_for_itself_has_the_same_limit(
    namespace: str, eight_gigabytes: str
) -> None:
    manifest = serving.manifest(
        model={"uri": eight_gigabytes},
        cache={"mode": "none", "size": "10Gi"},
        resources={"gpus": 0, "memory": "12Gi"},
    )
    kube.apply(manifest, namespace)
    pod = kube.wait_until(lambda: _initialized(namespace), 400, "the init container to end")
    [container] = pod["spec"]["initContainers"]
    assert container["resources"]["limits"]["memory"] == FETCH_LIMIT
    [status] = pod["status"]["initContainerStatuses"]
    assert (status["state"]["terminated"]["exitCode"], status["restartCount"]) == (0, 0)
    assert json.loads(status["state"]["terminated"]["message"])["bytesTotal"] > 8e9


def _initialized(namespace: str) -> kube.Json | None:
    for pod in kube.items("pods", namespace, "serving.quire.dev/service=chat"):
        for status in pod["status"].get("initContainerStatuses", []):
            if "terminated" in {**status["state"], **status.get("lastState", {})}:
                return pod
    return None


def _attempts(namespace: str) -> list[int]:
    """Numbers of the attempts that brought what the namespace's claims hold."""
    return [
        json.loads(value)["attempt"]
        for claim in kube.items("persistentvolumeclaims", namespace)
        for key, value in claim["metadata"]["annotations"].items()
        if key.startswith("serving.quire.dev/fetched.")
    ]


def _free(folder: Path) -> None:
    """Give the disk its gigabytes back now: the provisioner takes its time."""
    for file in (folder / "model").iterdir():
        os.truncate(file, 0)
