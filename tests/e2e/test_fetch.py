"""Getting the model: each failure has its reason in Ready, and mending it is enough."""

import base64

import pytest

from quire_cluster import faults, kube, serving
from quire_cluster.faults import Hub, SmallVolumes, flip_byte
from quire_cluster.place import POD_SECONDS, Place

pytestmark = pytest.mark.e2e

RECOVERY_SECONDS = 90


def test_repo_not_found_then_it_appears(namespace: str, place: Place, hub: Hub) -> None:
    hub.clear_log()
    hub.faults(hidden=["HuggingFaceTB/SmolLM2-135M-Instruct"])
    place.apply("chat")
    message = place.found("chat", "SourceNotFound", POD_SECONDS)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    place.told_in_time("chat", "SourceNotFound", hub.first_asked())
    hub.faults()
    place.cleared("chat", "SourceNotFound")
    kube.wait_ready(namespace, "chat", RECOVERY_SECONDS)


def test_wrong_token_then_the_right_one_and_who_sees_it(
    namespace: str, place: Place, hub: Hub
) -> None:
    """The credentials reach the fetch Job, and no other pod."""
    hub.clear_log()
    hub.faults(tokens={"HuggingFaceTB/SmolLM2-135M-Instruct": "right-token"})
    kube.apply(_secret("wrong-token"), namespace)
    place.apply("chat", model={"uri": serving.MODEL, "credentialsSecret": "hub"})
    place.found("chat", "SourceUnauthorized", POD_SECONDS)
    place.told_in_time("chat", "SourceUnauthorized", hub.first_asked())
    kube.apply(_secret("right-token"), namespace)
    place.cleared("chat", "SourceUnauthorized")
    kube.wait_ready(namespace, "chat", RECOVERY_SECONDS)
    pods = kube.items("pods", namespace)
    engines = [pod for pod in pods if "chat" in pod["metadata"]["name"]]
    assert engines
    for pod in engines:
        assert '"hub"' not in str(pod["spec"]).replace("'", '"'), "an engine pod names the Secret"


def _secret(token: str) -> kube.Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub"},
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }


def test_fetch_killed_at_half_resumes(namespace: str, hub: Hub) -> None:
    """The Job's pod dies at half; the next attempt fetches only what is missing."""
    hub.faults(bytes_per_second=20_000_000)
    hub.clear_log()
    try:
        kube.apply(serving.manifest(), namespace)
        kube.wait_until(lambda: _bytes_done(namespace) > 60_000_000, 60, "a part of the download")
        [pod] = kube.items("pods", namespace, "job-name")
        kube.kubectl(
            "delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force",
            namespace=namespace,
        )  # fmt: skip
        assert kube.condition(kube.get("inferenceservice", "chat", namespace))["status"] != "True"
    finally:
        hub.faults()
    # Deleted by force: nobody tells whether its process has ended, so its Lease must run out.
    service = kube.wait_ready(namespace, "chat", 60 + RECOVERY_SECONDS)
    served = hub.bytes_served()
    total = service["status"]["model"]["bytesTotal"]
    # What was in flight when the pod died may come twice: a few parts, not the model.
    assert served < total * 1.25
    with serving.connect(namespace) as client:
        assert "Paris" in serving.ask(client)


def _bytes_done(namespace: str) -> int:
    service = kube.get("inferenceservice", "chat", namespace)
    done: int = service.get("status", {}).get("model", {}).get("bytesDone", 0)
    return done


def test_a_full_volume_says_so_and_recovers(
    namespace: str, place: Place, hub: Hub, small_volumes: SmallVolumes
) -> None:
    small_volumes.create(namespace, "models", mebibytes=100)
    cache = {"mode": "existing", "existingClaim": "models"}
    place.apply("chat", cache=cache)
    place.found("chat", "Fetching", POD_SECONDS)
    message = place.found("chat", "NoSpace")
    assert "MB" in message or "MiB" in message
    small_volumes.resize(namespace, "models", mebibytes=600)
    place.cleared("chat", "NoSpace")
    kube.wait_ready(namespace, "chat", RECOVERY_SECONDS)


def test_a_corrupt_file_is_found_and_fetched_again(namespace: str, hub: Hub) -> None:
    kube.apply(serving.manifest(), namespace)
    kube.wait_ready(namespace, "chat")
    [claim] = kube.items("persistentvolumeclaims", namespace)
    flip_byte(namespace, claim["metadata"]["name"], "model/model.safetensors", 150_000_000)
    hub.clear_log()
    kube.kubectl("delete", "pod", "-l", "serving.quire.dev/service=chat", namespace=namespace)
    kube.wait_until(
        lambda: hub.bytes_served(".safetensors") > 0,
        90,
        "the corrupt file to be fetched again",
    )
    kube.wait_ready(namespace, "chat", RECOVERY_SECONDS)
    with serving.connect(namespace) as client:
        assert "Paris" in serving.ask(client)


def test_one_wrong_byte_is_corrupt_and_a_right_one_heals_it(
    namespace: str, place: Place, hub: Hub
) -> None:
    hub.faults(path=".safetensors", flip_byte_at=100_000_000)
    kube.apply(serving.prefetched(serving.MODEL, "1Gi"), namespace)
    cached = kube.wait_condition(namespace, "chat", "ModelCached", "Corrupt", 120)
    assert "model.safetensors" in cached["message"]
    [claim] = kube.items("persistentvolumeclaims", namespace)
    folder = faults.volume_folder(namespace, claim["metadata"]["name"])
    installed = [*folder.glob("manifest.json"), *folder.glob("model")]
    assert installed == [], "something corrupt is served"
    hub.faults()
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", 60)
