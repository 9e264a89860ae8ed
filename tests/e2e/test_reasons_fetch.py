"""`Ready` never lies about a fetch: what cuts it off, each by a real cause, and its end.

Models are fetched ahead, so that no engine has to start.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from quire_cluster import faults, kube
from quire_cluster.faults import Hub
from quire_cluster.place import CLEARED_SECONDS, FOUND_SECONDS, POD_SECONDS, Place, when
from quire_cluster.tiny_models import write_tiny_model

pytestmark = pytest.mark.e2e

SILENCE_SECONDS = 60
"""After which a source that keeps the connection and sends nothing is called stalled."""
SLOW = 20_000_000  # bytes a second: the tests' model takes 14 s
AHEAD = {
    "cache": {"size": "1Gi", "prefetch": True},
    "resources": {"gpus": 0, "memory": "32Gi"},
    "replicas": 0,
}


def test_a_source_that_refuses_connections(place: Place, hub: Hub) -> None:
    if os.environ.get("QUIRE_CLUSTER_NETWORK") != "direct":
        pytest.skip("the way to a given cluster's mirror is not ours to close")
    with faults.refused(hub.address):
        place.apply("chat", **AHEAD)
        # The plan's container has begun: from then on nobody answers it.
        began = place.job_pod("plan")["status"]["containerStatuses"][0]["state"]
        place.found("chat", "SourceUnreachable", POD_SECONDS)
        place.told_in_time("chat", "SourceUnreachable", when(began["running"]["startedAt"]))
    place.cleared("chat", "SourceUnreachable")


def test_a_source_that_sends_nothing_any_more(place: Place, hub: Hub) -> None:
    hub.faults(bytes_per_second=SLOW)
    place.apply("chat", **AHEAD)
    place.job_pod("fetch")
    hub.faults(path=".safetensors", stall_after_bytes=0)
    place.found("chat", "Stalled", SILENCE_SECONDS + FOUND_SECONDS)
    hub.faults()
    place.cleared("chat", "Stalled")


def test_a_fetch_that_is_killed_and_one_whose_pod_is_deleted(place: Place, hub: Hub) -> None:
    """It is over when the next attempt's pod runs, which follows soon: nobody is in doubt whether
    the one before still writes."""
    hub.faults(bytes_per_second=SLOW)
    place.apply("chat", **AHEAD)
    first = place.job_pod("fetch")
    kube.wait_until(lambda: faults.has_process(first), FOUND_SECONDS, "its process")
    os.kill(faults.first_process(first), signal.SIGKILL)
    assert "was killed" in place.found("chat", "Interrupted")
    second = place.job_pod("fetch", first["metadata"]["name"])
    place.cleared("chat", "Interrupted")
    kube.kubectl(
        "delete", "pod", second["metadata"]["name"], "--wait=false", namespace=place.namespace
    )
    place.found("chat", "Interrupted")
    place.job_pod("fetch", first["metadata"]["name"], second["metadata"]["name"])
    place.cleared("chat", "Interrupted")
    hub.faults()
    kube.wait_condition(place.namespace, "chat", "ModelCached", "Cached", POD_SECONDS)


def test_bytes_while_they_come(place: Place, hub: Hub) -> None:
    hub.faults(bytes_per_second=20_000_000)
    try:
        with place.service("slow", **AHEAD):
            place.found("slow", "Fetching", POD_SECONDS)
            kube.wait_until(
                lambda: " MB at " in place.ready("slow")["message"], POD_SECONDS, "bytes and rate"
            )
            hub.faults()
            place.cleared("slow", "Fetching", POD_SECONDS)
    finally:
        hub.faults()


def test_a_repository_without_a_model_then_a_wrong_byte(
    place: Place, hub: Hub, hub_root: Path
) -> None:
    """Fetched ahead, so that no engine has to start."""
    repository = f"quire-tests/{place.namespace}"
    folder = hub_root / repository
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("No model here.")
    fetched = {"model": {"uri": f"hf://{repository}"}, "replicas": 0}
    fetched["cache"] = {"size": "100Mi", "prefetch": True}
    hub.clear_log()
    try:
        with place.service("ahead", **fetched):
            place.found("ahead", "UnsupportedModel", POD_SECONDS)
            place.told_in_time("ahead", "UnsupportedModel", hub.first_asked())
            hub.faults(path=".safetensors", flip_byte_at=5000)
            write_tiny_model(folder)
            place.cleared("ahead", "UnsupportedModel")
            place.found("ahead", "Corrupt", POD_SECONDS)
            hub.faults()
            place.found("ahead", "ScaledToZero", CLEARED_SECONDS)
    finally:
        hub.faults()
        shutil.rmtree(folder)


def test_a_volume_that_cannot_be_written_then_can(place: Place) -> None:
    """A folder of the node's, as no storage class makes them."""
    folder = Path(os.environ["QUIRE_AUDIT_LOG"]).parent / f"{place.namespace}-folder"
    folder.mkdir(mode=0o755)
    try:
        _existing_claim(place, "locked", folder)
        cache = {"mode": "existing", "existingClaim": "locked"}
        with place.service("unwritten", cache=cache):
            place.found("unwritten", "FetchFailed", POD_SECONDS)
            folder.chmod(0o777)
            place.cleared("unwritten", "FetchFailed")
    finally:
        kube.kubectl("delete", "persistentvolume", place.namespace, "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


def _existing_claim(place: Place, name: str, folder: Path) -> None:
    size = {"storage": "1Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": place.namespace},
        "spec": {
            "storageClassName": place.namespace,
            "accessModes": ["ReadWriteOnce"],
            "capacity": size,
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": place.namespace,
            "volumeName": place.namespace,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": size},
        },
    }
    kube.apply(volume)
    kube.apply(claim, place.namespace)
