"""What holds a fetch up from outside, and is made room for: a quota, a claim that is too small."""

import json
import time
from collections.abc import Iterator

import pytest

from quire_cluster import kube, serving
from quire_cluster.faults import Hub, SmallVolumes

pytestmark = pytest.mark.e2e

FOUND_SECONDS = 45
"""A pod has to come up before, on a busy machine."""
CLEARED_SECONDS = 15
BACKED_OFF_SECONDS = 35
"""By then a Job's controller, left alone, waits for 32 s and more between two tries."""
RECOVERY_SECONDS = 90


def test_a_quota_that_lets_no_pod_in_then_does(namespace: str, hub: Hub) -> None:
    """First the plan's pod, then the fetch's; each goes on within 15 s of the quota's end."""
    _quota(namespace, 0)
    kube.apply(serving.prefetched(serving.MODEL, "1Gi"), namespace)
    assert "the plan gets no pod" in kube.wait_reason(
        namespace, "chat", "QuotaExceeded", FOUND_SECONDS
    )
    time.sleep(BACKED_OFF_SECONDS)
    hub.faults(path="config.json", stall_after_bytes=0)  # the plan is not over too soon
    try:
        _quota(namespace, 1)
        kube.wait_until(lambda: _pods(namespace, "plan"), CLEARED_SECONDS, "the plan's pod")
        _quota(namespace, 0)
    finally:
        hub.faults()
    kube.wait_until(lambda: "the fetch gets no pod" in _message(namespace), FOUND_SECONDS, "fetch")
    assert _reason(namespace) == "QuotaExceeded"
    time.sleep(BACKED_OFF_SECONDS)
    kube.kubectl("delete", "resourcequota", "pods", namespace=namespace)
    cleared = lambda: _reason(namespace) != "QuotaExceeded"  # noqa: E731
    kube.wait_until(cleared, CLEARED_SECONDS, "the quota's end to be seen")
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", RECOVERY_SECONDS)


def _quota(namespace: str, pods: int) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "pods"},
        "spec": {"hard": {"pods": str(pods)}},
    }
    kube.apply(quota, namespace)
    told = str(pods)
    kube.wait_until(lambda: _hard(namespace) == told, 20, "the quota to be in force")


def _hard(namespace: str) -> str:
    quota = kube.get("resourcequota", "pods", namespace)
    hard: str = quota.get("status", {}).get("hard", {}).get("pods", "")
    return hard


def _pods(namespace: str, component: str) -> list[kube.Json]:
    return kube.items("pods", namespace, f"app.kubernetes.io/component={component}")


def _ready(namespace: str) -> kube.Json:
    return kube.condition(kube.get("inferenceservice", "chat", namespace))


def _reason(namespace: str) -> str:
    return str(_ready(namespace)["reason"])


def _message(namespace: str) -> str:
    return str(_ready(namespace)["message"])


# ---- a claim that is too small -------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["grows", "does-not-grow"])
def grows(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def storage_class(namespace: str, grows: bool) -> Iterator[str]:
    """A class as the default one, whose claims may grow, or may not."""
    marks = "storageclass.kubernetes.io/is-default-class"
    [default] = [
        each
        for each in kube.items("storageclass")
        if each["metadata"].get("annotations", {}).get(marks) == "true"
    ]
    name = f"{namespace}-class"
    fields = ("apiVersion", "kind", "provisioner", "parameters")
    found = {field: default[field] for field in fields if field in default}
    found |= {"metadata": {"name": name}, "allowVolumeExpansion": grows}
    kube.apply(found | {"volumeBindingMode": "Immediate"})
    yield name
    kube.kubectl("delete", "storageclass", name)


def test_a_claim_too_small_for_its_model(
    namespace: str, storage_class: str, grows: bool, small_volumes: SmallVolumes
) -> None:
    """The API server decides whether it may grow; that it does is the storage driver's work, which
    the test does here."""
    volume = small_volumes.offer(namespace, "models", 100, storage_class)
    service = serving.prefetched(serving.MODEL, "100Mi")
    service["spec"]["cache"]["storageClassName"] = storage_class
    kube.apply(service, namespace)
    kube.wait_reason(namespace, "chat", "NoSpace", FOUND_SECONDS)
    [claim] = kube.items("persistentvolumeclaims", namespace)
    assert claim["spec"]["volumeName"] == volume
    _set_size(namespace, None)  # as large as the plan says
    if grows:
        kube.wait_until(lambda: _asked(namespace) == "1Gi", CLEARED_SECONDS, "growth asked for")
        assert _given(namespace) == "100Mi"
        _play_resizer(namespace, volume)
    else:
        words = f"claim {claim['metadata']['name']} of 100Mi cannot grow to 1Gi"
        kube.wait_until(lambda: words in _message(namespace), 2 * CLEARED_SECONDS, words)
        assert _reason(namespace) == "NoSpace"
        assert "storageclass" in _message(namespace)
        assert "set cache.size to keep it" in _message(namespace)
        assert _asked(namespace) == "100Mi"
        _set_size(namespace, "100Mi")
    small_volumes.resize(namespace, "models", mebibytes=600)
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", RECOVERY_SECONDS)
    assert "cannot grow" not in _message(namespace)


def _set_size(namespace: str, size: str | None) -> None:
    kube.patch("inferenceservice", "chat", namespace, {"spec": {"cache": {"size": size}}})


def _asked(namespace: str) -> str:
    [claim] = kube.items("persistentvolumeclaims", namespace)
    asked: str = claim["spec"]["resources"]["requests"]["storage"]
    return asked


def _given(namespace: str) -> str:
    [claim] = kube.items("persistentvolumeclaims", namespace)
    given: str = claim["status"]["capacity"]["storage"]
    return given


def _play_resizer(namespace: str, volume: str) -> None:
    """What external-resizer writes once the driver has made the volume larger."""
    size = {"capacity": {"storage": "1Gi"}}
    kube.kubectl("patch", "persistentvolume", volume, "-p", json.dumps({"spec": size}))
    [claim] = kube.items("persistentvolumeclaims", namespace)
    kube.kubectl(
        "patch", "persistentvolumeclaim", claim["metadata"]["name"], "--subresource=status",
        "--type=merge", "-p", json.dumps({"status": size}), namespace=namespace,
    )  # fmt: skip
