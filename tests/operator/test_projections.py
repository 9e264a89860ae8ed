"""Projections of objects as the API server sends them."""

import pytest

from quire_operator.kinds import JOB, POD, SCALED_OBJECT, SERVICE_KIND, Manifest
from quire_operator.projections import project
from quire_operator.views import AutoscalerView, ConditionView, JobView, PodView, ServiceView


def meta(**more: object) -> Manifest:
    return {
        "namespace": "ns",
        "name": "x",
        "uid": "u1",
        "resourceVersion": "7",
        "creationTimestamp": "2026-11-21T10:00:00Z",
        **more,
    }


def test_a_pod_is_read_with_its_troubles() -> None:
    body = {
        "metadata": meta(labels={"serving.quire.dev/service": "chat"}),
        "spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": {
            "phase": "Running",
            "podIP": "203.0.113.7",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {
                    "name": "engine",
                    "restartCount": 4,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {
                        "terminated": {
                            "exitCode": 137,
                            "reason": "OOMKilled",
                            "finishedAt": "2026-11-21T10:01:00Z",
                        }
                    },
                }
            ],
        },
    }
    pod = project(POD, body)
    assert isinstance(pod, PodView)
    assert pod.main is not None
    assert pod.main.last_exit is not None
    assert (pod.main.last_exit.code, pod.main.last_exit.reason) == (137, "OOMKilled")
    assert pod.main.memory_limit == "2Gi"
    assert pod.main.waiting == "CrashLoopBackOff"
    assert pod.unschedulable is None
    assert not pod.ready


def test_a_pod_without_status_is_pending() -> None:
    pod = project(POD, {"metadata": meta(), "spec": {"containers": [{"name": "engine"}]}})
    assert isinstance(pod, PodView)
    assert pod.phase == "Pending"
    assert pod.main is not None
    assert not pod.main.running


@pytest.mark.parametrize("attempt", ["many", "²", "-1", ""])
def test_a_job_with_a_hand_written_attempt_counts_as_none(attempt: str) -> None:
    body = {"metadata": meta(annotations={"serving.quire.dev/attempt": attempt})}
    job = project(JOB, body)
    assert isinstance(job, JobView)
    assert job.attempt == 0


def test_a_service_whose_spec_does_not_decode_says_where() -> None:
    body = {"metadata": meta(generation=3), "spec": {"model": {"uri": 5}}}
    service = project(SERVICE_KIND, body)
    assert isinstance(service, ServiceView)
    assert service.spec is None
    assert service.error is not None
    assert "$.model.uri" in service.error


def test_an_autoscaler_tells_its_conditions() -> None:
    condition = {"type": "Ready", "status": "False", "reason": "R", "message": "m"}
    body = {
        "kind": "ScaledObject",
        "metadata": meta(deletionTimestamp="2026-11-21T10:00:30Z"),
        "spec": {"maxReplicaCount": 3},
        "status": {"conditions": [condition, {"type": "Active"}], "desiredReplicas": 2},
    }
    view = project(SCALED_OBJECT, body)
    assert isinstance(view, AutoscalerView)
    assert view.condition("Ready") == ConditionView("Ready", "False", "R", "m")
    assert view.condition("Active") == ConditionView("Active", "Unknown", "", "")
    assert view.condition("Paused") is None
    assert (view.kind, view.desired) == ("ScaledObject", 2)
    assert view.deleted == view.meta.created + 30
    assert b"maxReplicaCount" in view.body
    assert b"conditions" not in view.body, "a change of status is no drift"
