"""From zero back: the gateway answers until a pod does, and who asks wakes the service."""

import pytest

from quire_operator.errors import Unavailable
from quire_operator.kinds import (
    DEPLOYMENT,
    LEASE,
    SERVICE_KIND,
    SLICE,
    Kind,
    Manifest,
)
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_sleep import (
    CHAT,
    GATEWAY,
    SLEEPS,
    Witness,
    leads_to,
    ours,
    replicas,
    restarted,
    wish,
)


async def test_the_gateway_answers_until_the_address_leads_to_a_pod(asleep: Rig) -> None:
    wish(asleep, 1)
    await asleep.settle()
    assert leads_to(asleep.cluster) == list(GATEWAY)
    asleep.cluster.run_deployments(ready=False)
    await asleep.settle()
    assert leads_to(asleep.cluster) == list(GATEWAY)
    asleep.cluster.run_deployments(endpoints=False)  # ready, but the Service does not know it yet
    await asleep.settle()
    assert leads_to(asleep.cluster) == list(GATEWAY)
    asleep.cluster.run_endpoints()
    await asleep.settle()
    assert leads_to(asleep.cluster) == ["203.0.113.1"]
    assert asleep.condition(CHAT).status == "True"


async def test_who_was_woken_has_a_whole_deadline(asleep: Rig) -> None:
    """The revision is older than its progress deadline, but it has only just been asked to run."""
    asleep.cluster.now += 10_000
    wish(asleep, 1)
    await asleep.settle()
    (body,) = asleep.cluster.all(DEPLOYMENT)
    lost = {"type": "Available", "status": "False", "lastTransitionTime": "2023-11-15T01:00:10Z"}
    at = Key("default", body["metadata"]["name"])
    asleep.cluster.set_status(DEPLOYMENT, at, body["status"] | {"conditions": [lost]})
    asleep.cluster.now = 1_700_010_015.0  # 5 s after that
    await asleep.wake(CHAT)
    assert asleep.condition(CHAT, "RolloutComplete").reason == "Progressing"
    asleep.cluster.now += 1800
    await asleep.wake(CHAT)
    assert asleep.condition(CHAT, "RolloutComplete").reason == "ProgressDeadlineExceeded"


async def test_to_sleep_again_while_the_slice_is_being_removed(asleep: Rig) -> None:
    """The watch has not told of the slice's end yet; the pods must not go on the strength of it."""
    witness = Witness(asleep)
    wish(asleep, 1)
    await asleep.settle()
    lagging: list[tuple[Kind, str, Manifest]] = []
    feed = asleep._feed

    def late(kind: Kind, event: str, body: Manifest) -> None:
        if kind is SLICE and event == "DELETED":
            lagging.append((kind, event, body))
        else:
            feed(kind, event, body)

    asleep.cluster._listeners[0] = late
    asleep.cluster.run_deployments()
    await asleep.settle()
    assert ours(asleep.cluster) is None
    wish(asleep, 0)
    await asleep.settle()
    assert ours(asleep.cluster) is not None
    assert replicas(asleep.cluster) == [0]
    for told in lagging:
        feed(*told)
    await asleep.settle()
    assert leads_to(asleep.cluster)[-2:] == list(GATEWAY)
    assert witness.broken == []


async def test_a_slice_that_is_held_up_on_its_way_out_is_not_counted_on(asleep: Rig) -> None:
    wish(asleep, 1)
    await asleep.bring_up(CHAT)
    wish(asleep, 0)
    asleep.cluster.refuse[DEPLOYMENT] = Unavailable(0, "PATCH", "later")
    with pytest.raises(Unavailable):
        await asleep.settle()
    body = ours(asleep.cluster)
    assert body is not None
    body["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"  # somebody's finalizer
    asleep.cluster.put(body)
    asleep.cluster.refuse.clear()
    await asleep.settle()
    assert replicas(asleep.cluster) == [1]
    asleep.cluster.remove(SLICE, Key("default", "chat-gateway"))
    await asleep.settle()
    assert replicas(asleep.cluster) == [0]
    assert leads_to(asleep.cluster)[-2:] == list(GATEWAY)


async def test_nothing_is_left_of_who_may_sleep_no_more(asleep: Rig) -> None:
    wish(asleep, 1, scaling={"mode": "builtin"})
    await asleep.settle()
    assert ours(asleep.cluster) is None
    assert asleep.status(CHAT).gateway_port is None


async def test_nothing_is_left_of_a_deleted_service(asleep: Rig) -> None:
    asleep.cluster.remove(SERVICE_KIND, CHAT)
    await asleep.settle()
    assert asleep.cluster.all(SLICE) == []
    assert asleep.world.ports.port(CHAT) is None


async def test_a_lease_activates_and_runs_out(asleep: Rig) -> None:
    woken: list[Key] = []
    asleep.world.on_activation = woken.append
    assert activated(asleep) is False
    asleep.cluster.activate(CHAT, 15)
    assert activated(asleep) is True
    asleep.cluster.now += 10
    asleep.cluster.activate(CHAT, 15)
    assert woken == [CHAT], "a renewal is no news"
    asleep.cluster.now += 14
    assert activated(asleep) is True
    asleep.cluster.now += 1
    assert activated(asleep) is False
    asleep.cluster.activate(CHAT, 15)
    assert woken == [CHAT, CHAT]
    asleep.cluster.remove(LEASE, Key("default", "chat-activation"))
    assert activated(asleep) is False


def activated(rig: Rig) -> bool:
    snapshot = rig.world.snapshot(CHAT)
    assert snapshot is not None
    return snapshot.activated


async def test_a_lease_written_while_no_operator_ran_is_found(asleep: Rig) -> None:
    asleep.cluster._listeners.clear()
    asleep.cluster.activate(CHAT, 15)
    asleep.cluster.now += 10
    other = restarted(asleep, *GATEWAY)
    assert activated(other) is True
    asleep.cluster.now += 5
    assert activated(other) is False


async def test_a_lease_is_never_written_to_and_costs_no_reconcile(asleep: Rig) -> None:
    before = len(asleep.cluster.writes)
    asleep.cluster.activate(CHAT)
    assert CHAT not in asleep.woken
    await asleep.settle()
    asleep.cluster.now += 1000
    await asleep.wake(CHAT)
    assert [w for w in asleep.cluster.writes[before:] if "Lease" in w] == []


async def test_the_scaler_is_told_whether_the_gateway_could_hold(rig: Rig, chat: Key) -> None:
    def could() -> bool:
        snapshot = rig.world.snapshot(chat)
        assert snapshot is not None
        return snapshot.gateway_ready

    rig.cluster.put(service_manifest(scaling=SLEEPS))
    assert could() is False, "no port yet, no gateway"
    await rig.settle()
    assert could() is False
    rig.gateway()
    assert could() is False
    rig.gateway(GATEWAY[0])
    assert could() is True
