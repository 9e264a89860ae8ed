"""The builtin scaler: up on waiting requests, down when they are gone, each with its reason."""

import time

import pytest

from quire_cluster import kube, serving
from quire_cluster.faults import cut_off

pytestmark = pytest.mark.e2e

SPEC: kube.Json = {
    "engine": {"maxNumSeqs": 2},
    "scaling": {
        "mode": "builtin",
        "minReplicas": 1,
        "maxReplicas": 2,
        "targets": {"queueDepth": 2},
        "scaleDown": {"stabilizationSeconds": 10},
    },
}


def test_a_burst_takes_it_to_two_and_back_to_one(namespace: str) -> None:
    kube.apply(serving.manifest(**SPEC), namespace)
    kube.wait_ready(namespace, "chat")

    with serving.connect(namespace) as client:
        burst = serving.Burst(client, num_callers=12, limit_seconds=150)
        try:
            kube.wait_until(lambda: _status(namespace).get("readyReplicas") == 2, 150, "2 replicas")
        finally:
            result = burst.stop()
    assert result.errors == ()
    assert result.num_answered > 0

    up = _status(namespace)["scaling"]["decisions"][-1]
    assert (up["from"], up["to"]) == (1, 2)
    assert "waiting" in up["reason"] or "queue" in up["reason"].lower()
    assert up["inputs"], "a decision carries the numbers that it was taken on"

    kube.wait_until(lambda: _status(namespace)["replicas"] == 1, 120, "1 replica again")
    down = _status(namespace)["scaling"]["decisions"][0]
    assert (down["from"], down["to"]) == (2, 1)


def test_missing_metrics_never_scale_down(namespace: str) -> None:
    """Two replicas, no traffic, one pod's metrics out of reach: both stay, and status says why."""
    spec = {**SPEC, "replicas": 2}
    kube.apply(serving.manifest(**spec), namespace)
    kube.wait_until(lambda: _status(namespace).get("readyReplicas") == 2, 240, "2 replicas")
    [pod, _] = kube.items("pods", namespace, "serving.quire.dev/service=chat")
    operators = kube.items("pods", "quire-system", "app.kubernetes.io/name=quire")
    with cut_off(pod, *(operator["status"]["podIP"] for operator in operators)):
        kube.wait_until(lambda: _metrics_missed(namespace), 30, "Scaling=False/MetricsPartial")
        time.sleep(3 * SPEC["scaling"]["scaleDown"]["stabilizationSeconds"])
        assert _status(namespace)["replicas"] == 2
    kube.wait_until(lambda: _status(namespace)["replicas"] == 1, 60, "the scale-down it held back")


def _status(namespace: str) -> kube.Json:
    return kube.get("inferenceservice", "chat", namespace).get("status", {})


def _metrics_missed(namespace: str) -> bool:
    scaling = kube.condition(kube.get("inferenceservice", "chat", namespace), "Scaling")
    return bool(scaling["status"] == "False" and scaling["reason"] == "MetricsPartial")
