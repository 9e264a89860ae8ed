"""Models of gigabytes on their way to a claim, in little memory."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire_cluster import faults, kube, serving, sparse_models
from quire_cluster.faults import Hub

pytestmark = pytest.mark.e2e

FETCH_LIMIT = "512Mi"
Record = Callable[[str, object], None]


@pytest.fixture
def eight_gigabytes(hub_root: Path) -> str:
    name = "eight-gigabytes"
    return f"hf://{sparse_models.prepare(hub_root, name, sparse_models.EIGHT_GB, num_shards=5)}"


@pytest.fixture(autouse=True)
def healthy(hub: Hub) -> Iterator[None]:
    yield
    hub.faults()


def _fetching(namespace: str, killed: set[str]) -> kube.Json | None:
    """The pod of an attempt that runs."""
    for pod in kube.items("pods", namespace, "app.kubernetes.io/component=fetch"):
        is_another = pod["metadata"]["name"] not in killed
        if is_another and _runs(pod) and faults.has_process(pod):
            return pod
    return None


def _runs(pod: kube.Json) -> bool:
    return bool(pod["status"]["phase"] == "Running")


def _folder(namespace: str) -> Path:
    [claim] = kube.items("persistentvolumeclaims", namespace)
    return faults.volume_folder(namespace, claim["metadata"]["name"])


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
