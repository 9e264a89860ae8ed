"""Fetches that go wrong, or have little room, on the real cluster."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire_cluster import faults, kube, serving
from quire_cluster.faults import Hub

pytestmark = pytest.mark.e2e

FETCH_LIMIT = "512Mi"


@pytest.fixture(autouse=True)
def healthy(hub: Hub) -> Iterator[None]:
    yield
    hub.faults()


def test_one_wrong_byte_is_corrupt_and_a_right_one_heals_it(namespace: str, hub: Hub) -> None:
    hub.faults(path=".safetensors", flip_byte_at=100_000_000)
    kube.apply(serving.prefetched(serving.MODEL, "1Gi"), namespace)
    cached = kube.wait_condition(namespace, "chat", "ModelCached", "Corrupt", 120)
    assert "model.safetensors" in cached["message"]
    assert _installed(namespace) == [], "something corrupt is served"
    hub.faults()
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", 60)


def _installed(namespace: str) -> list[Path]:
    [claim] = kube.items("persistentvolumeclaims", namespace)
    folder = faults.volume_folder(namespace, claim["metadata"]["name"])
    return [*folder.glob("manifest.json"), *folder.glob("model")]


def test_a_pod_that_fetches_for_itself_has_the_same_limit(
    namespace: str, two_gigabytes: str
) -> None:
    manifest = serving.manifest(
        model={"uri": two_gigabytes},
        cache={"mode": "none", "size": "3Gi"},
        resources={"gpus": 0, "memory": "6Gi"},
    )
    kube.apply(manifest, namespace)
    pod = kube.wait_until(lambda: _initialized(namespace), 200, "the init container to end")
    [container] = pod["spec"]["initContainers"]
    assert container["resources"]["limits"]["memory"] == FETCH_LIMIT
    [status] = pod["status"]["initContainerStatuses"]
    assert (status["state"]["terminated"]["exitCode"], status["restartCount"]) == (0, 0)
    assert json.loads(status["state"]["terminated"]["message"])["bytesTotal"] > 2e9


def _initialized(namespace: str) -> kube.Json | None:
    for pod in kube.items("pods", namespace, "serving.quire.dev/service=chat"):
        for status in pod["status"].get("initContainerStatuses", []):
            if "terminated" in {**status["state"], **status.get("lastState", {})}:
                return pod
    return None
