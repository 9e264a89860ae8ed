"""What kubelets write of pods, for `testing.FakeCluster`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from quire_operator import names
from quire_operator.kinds import Manifest
from quire_operator.values import timestamp

PLAN_REPORT: Mapping[str, object] = {
    "commit": "c0ffee",
    "bytesTotal": 1000,
    "plan": {
        "weightBytes": 800,
        "kvBytesPerToken": 16,
        "kvBlocks": 64,
        "maxModelLen": 512,
        "maxConcurrency": 2.0,
        "requiredBytes": 9000,
    },
}
"""What the engine says of a model that fits."""


def job_pod_status(container: str, message: Mapping[str, object] | None, now: float) -> Manifest:
    """Of a Job's pod: it runs, or has ended with this message, ill if that has a reason."""
    state: Manifest = {"running": {}}
    if message is not None:
        state = {
            "terminated": {
                "exitCode": 10 if "reason" in message else 0,
                "message": msgspec.json.encode(message).decode(),
                "finishedAt": timestamp(now),
            }
        }
    return {"containerStatuses": [{"name": container, "state": state}], "phase": "Running"}


def engine_pod_status(index: int, ready: bool, now: float) -> Manifest:
    """Of a pod that serves, and began 3 s ago; each has an address of its own."""
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": timestamp(now)}
    return {
        "conditions": [condition],
        "containerStatuses": [{"name": names.ENGINE_CONTAINER, "state": {"running": {}}}],
        "podIP": f"203.0.113.{index + 1}",
        "startTime": timestamp(now - 3),
    }
