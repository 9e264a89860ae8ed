"""Whatever happens to a service that may sleep, somebody answers who asks it."""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_operator.errors import Unavailable
from quire_operator.kinds import (
    DEPLOYMENT,
    SERVICE_KIND,
    SLICE,
)
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_sleep import (
    CHAT,
    GATEWAY,
    SLEEPS,
    Witness,
    ours,
    replicas,
    wish,
)

HAPPENINGS = (
    *("sleep", "wake", "pods", "unready", "late endpoints", "gateway", "no gateway", "one gateway"),
    *("edit", "pause", "may sleep", "lose the slice", "restart", "API away"),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(HAPPENINGS), min_size=3, max_size=12))
def test_somebody_always_answers(story: list[str]) -> None:
    asyncio.run(live(story))


async def live(story: list[str]) -> None:
    rig = Rig()
    rig.gateway(*GATEWAY)
    witness = Witness(rig)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(CHAT)
    for number, what in enumerate(story):
        await happen(rig, what, number)
        assert witness.broken == [], what
    rig.gateway(*GATEWAY)
    rig.cluster.refuse.clear()
    await rig.bring_up(CHAT)
    spec = rig.cluster.all(SERVICE_KIND)[0]["spec"]
    assert sum(replicas(rig.cluster)) == spec["replicas"]
    held = "idleSecondsToZero" in spec["scaling"] and spec["replicas"] == 0
    assert (ours(rig.cluster) is not None) == held
    assert witness.broken == []
    assert await rig.wake(CHAT) == []


def forget(rig: Rig) -> None:
    """What a new operator does not know: ports that were given out and not written."""
    rig.world.ports.release(CHAT)


async def happen(rig: Rig, what: str, number: int) -> None:
    cluster = rig.cluster
    simple = {
        "sleep": lambda: wish(rig, 0),
        "wake": lambda: wish(rig, 1 + number % 2),
        "pods": cluster.run_deployments,
        "unready": lambda: cluster.run_deployments(ready=False),
        "late endpoints": lambda: cluster.run_deployments(endpoints=False),
        "gateway": lambda: rig.gateway(*GATEWAY),
        "no gateway": rig.gateway,
        "one gateway": lambda: rig.gateway(GATEWAY[number % 2]),
        "edit": lambda: wish(rig, number % 3, engine={"maxModelLen": 100 + number}),
        "pause": lambda: wish(rig, 0, scaling={"mode": "none"}),
        "may sleep": lambda: wish(rig, number % 2, scaling=SLEEPS),
        "lose the slice": lambda: cluster.remove(SLICE, Key("default", "chat-gateway")),
        "restart": lambda: forget(rig),
        "API away": lambda: cluster.refuse.update({DEPLOYMENT: Unavailable(0, "PATCH", "away")}),
    }
    simple[what]()
    try:
        await rig.settle()
    except Unavailable:
        cluster.refuse.clear()
        rig.woken[CHAT] = None
        await rig.settle()
