"""The states of the world that conditions are tested with, over a `testing.Rig`."""

from __future__ import annotations

from dataclasses import replace

from quire_operator import conditions
from quire_operator.case import Case, Problem
from quire_operator.kinds import POD, Manifest
from quire_operator.names import Key
from quire_operator.observe import Observation, observe
from quire_operator.plan import plan
from quire_operator.testing import Rig, service_manifest

CHAT = Key("default", "chat")
EXIT: Manifest = {
    "exitCode": 1,
    "message": "INFO a b\nquire-engine: config.json has no hidden_size\n",
}
LOOP: Manifest = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}


def look(rig: Rig) -> Observation:
    service = rig.world.service(CHAT)
    assert service is not None
    assert service.spec is not None
    defaults = rig.reconciler.defaults
    return observe(rig.world, CHAT, service, service.spec, defaults, rig.cluster.now)


def case(rig: Rig, *problems: Problem, **more: object) -> Case:
    seen = replace(look(rig), **more)  # type: ignore[arg-type]
    return Case(seen, plan(seen), problems)


def ready(found: Case) -> tuple[str, str, str]:
    first = conditions.conditions(found)[0]
    assert first.type == "Ready"
    return first.status, first.reason, first.message


async def up(rig: Rig, **spec: object) -> None:
    rig.cluster.put(service_manifest(**spec))  # type: ignore[arg-type]
    await rig.bring_up(CHAT)


def engine_pod(rig: Rig) -> Manifest:
    return next(p for p in rig.cluster.all(POD) if "fetch" not in p["metadata"]["name"])


def spoil(rig: Rig, state: Manifest, last: Manifest | None = None, **status: object) -> None:
    """Makes the engine's pod unready, in the given state."""
    pod = engine_pod(rig)
    container = {"name": "engine", "state": state, "lastState": last or {}, "restartCount": 3}
    pod["status"] = {
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [container],
        **status,
    }
    rig.cluster.put(pod)
