"""Memory plans as the tests of `fit` ask for them and find them, over a `testing.Rig`."""

from __future__ import annotations

from quire_operator import api
from quire_operator.kinds import JOB
from quire_operator.names import Key
from quire_operator.testing import Rig
from quire_operator.testing_pods import PLAN_REPORT

LABEL = "nvidia.com/gpu.memory"
REFUSAL = "it needs 17.1 GiB, got 14.4 GiB; the largest context that fits is 12,288"
REFUSED: dict[str, object] = {**PLAN_REPORT, "reason": "DoesNotFit", "message": REFUSAL}


def jobs(rig: Rig) -> list[str]:
    return [job["metadata"]["name"] for job in rig.cluster.all(JOB)]


def arguments(rig: Rig) -> list[str]:
    [job] = rig.cluster.all(JOB)
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def planned(rig: Rig, key: Key) -> api.PlanStatus:
    plan = rig.status(key).plan
    assert plan is not None
    return plan
