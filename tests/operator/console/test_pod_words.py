"""A pod in one word, and its trouble in one line: from what the API server says of it."""

import pytest

from quire_operator import names
from quire_operator.console import pod_words
from quire_operator.kinds import POD, Manifest
from quire_operator.projections import project
from quire_operator.views import PodView

NOW = 1_700_000_060.0
ENDED = "2023-11-14T22:13:40Z"
"""40 s before NOW."""


def pod(*, job: bool = False, init: Manifest | None = None, **status: object) -> PodView:
    container = {"name": "fetch" if job else "engine"}
    spec: Manifest = {"containers": [container | {"resources": {"limits": {"memory": "300Mi"}}}]}
    if init is not None:
        spec["initContainers"] = [{"name": "fetch"}]
        status["initContainerStatuses"] = [{"name": "fetch", **init}]
    meta: Manifest = {"name": "p", "namespace": "d", "uid": "u"}
    if job:
        meta["labels"] = {"batch.kubernetes.io/job-name": "j", names.COMPONENT: "fetch"}
    view = project(POD, {"kind": "Pod", "metadata": meta, "spec": spec, "status": status})
    assert isinstance(view, PodView)
    return view


def engine(state: Manifest, last: Manifest | None = None, restarts: int = 0) -> list[Manifest]:
    return [{"name": "engine", "state": state, "lastState": last or {}, "restartCount": restarts}]


def died(code: int = 1, message: str = "", reason: str = "Error") -> Manifest:
    return {
        "terminated": {"exitCode": code, "message": message, "reason": reason, "finishedAt": ENDED}
    }


READY = [{"type": "Ready", "status": "True", "lastTransitionTime": ENDED}]
NO_NODE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
]
WAITS = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
RUNS: Manifest = {"running": {}}

CASES = [
    (pod(phase="Running", conditions=READY, containerStatuses=engine(RUNS)), "Ready", None),
    (pod(phase="Running", containerStatuses=engine(RUNS)), "Loading", None),
    (pod(phase="Pending", conditions=NO_NODE), "Unschedulable", "0/3 nodes"),
    (pod(phase="Pending", containerStatuses=engine(WAITS)), "ImagePullBackOff", "no such image"),
    (pod(phase="Pending"), "Pending", None),
    (
        pod(phase="Failed", reason="Evicted", message="low on memory"),
        "Evicted",
        "low on memory",
    ),
    (
        pod(phase="Running", containerStatuses=engine(RUNS, died(137, reason="OOMKilled"), 2)),
        "Loading",
        "killed at its memory limit of 300Mi, 40s ago",
    ),
    (
        pod(phase="Running", containerStatuses=engine(died(2, '{"reason":"X","message":"why"}'))),
        "Error",
        "exited with 2, 40s ago: why",
    ),
    (
        pod(conditions=READY, containerStatuses=engine(RUNS, died(0, reason="Completed"))),
        "Ready",
        None,
    ),
    (pod(phase="Pending", init={"state": RUNS}), "Fetching", None),
    (
        pod(init={"state": BACK_OFF, "lastState": died(10, "401\n")}),
        "CrashLoopBackOff",
        "exited with 10, 40s ago: 401",
    ),
    (
        pod(job=True, phase="Running", containerStatuses=[{"name": "fetch", "state": RUNS}]),
        "Fetching",
        None,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("view", "state", "trouble"), CASES)
def test_state_and_trouble(view: PodView, state: str, trouble: str | None) -> None:
    assert pod_words.state(view) == state
    assert pod_words.trouble(view, NOW) == trouble


def test_restarts_are_of_both_containers() -> None:
    view = pod(
        phase="Running",
        init={"state": died(0, reason="Completed"), "restartCount": 2},
        containerStatuses=engine(RUNS, restarts=3),
    )
    assert pod_words.restarts(view) == 5
