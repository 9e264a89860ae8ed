"""Projections of objects as the API server sends them; when a live one holds what is wanted."""

import pytest

from quire_operator.kinds import JOB, POD, SERVICE_KIND, Manifest
from quire_operator.views import JobView, PodView, ServiceView, holds, project, quantity


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


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1000m"}),
        ({"memory": "2Gi"}, {"memory": "2048Mi"}),
        ({"n": "2"}, {"n": 2}),
        ({}, {"empty": {}, "none": None, "list": [], "off": False}),
        ({"l": [{"name": "x", "added": 1}, {"name": "y"}]}, {"l": [{"name": "y"}, {"name": "x"}]}),
    ],
)
def test_holds(live: Manifest, wanted: Manifest) -> None:
    assert holds(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1}, {"a": 2}),
        ({}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1001m"}),
        ({"on": True}, {"on": 1}),
        ({"on": 1}, {"on": True}),
        ({"l": [{"name": "x"}]}, {"l": [{"name": "y"}]}),
        ({"a": "text"}, {"a": {"b": 1}}),
    ],
)
def test_holds_not(live: Manifest, wanted: Manifest) -> None:
    assert not holds(live, wanted)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", 0.5),
        (2, 2.0),
        ("20Gi", 20 * 1024**3),
        ("1.5G", 1.5e9),
        ("many", None),
        ("1.2.3", None),
    ],
)
def test_quantity(text: object, value: float | None) -> None:
    assert quantity(text) == value
