"""To zero and back: who asks a service that may sleep finds somebody, its pods or the gateway."""

from typing import Any

import pytest

from quire_operator.errors import Denied, Unavailable
from quire_operator.kinds import (
    DEPLOYMENT,
    POD,
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
    leads_to,
    ours,
    replicas,
    restarted,
    wish,
)

# ---- the port -----------------------------------------------------------------------------------


async def test_who_may_sleep_has_a_port_and_keeps_it(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(chat)
    port = rig.status(chat).gateway_port
    assert port is not None
    assert 20000 <= port <= 29999
    other = restarted(rig)
    other.cluster.put(service_manifest("earlier-by-name", scaling=SLEEPS))
    await other.settle()
    assert other.status(chat).gateway_port == port


async def test_who_may_not_sleep_has_none_and_gives_it_back(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.status(chat).gateway_port is None
    wish(rig, 1, scaling=SLEEPS)
    await rig.settle()
    assert rig.status(chat).gateway_port is not None
    wish(rig, 1, scaling={})
    await rig.settle()
    assert rig.status(chat).gateway_port is None
    assert rig.world.ports.port(chat) is None


async def test_a_restored_backup_with_one_port_twice_is_resolved(rig: Rig, chat: Key) -> None:
    rig.gateway(*GATEWAY)
    for name in ("chat", "code"):
        rig.cluster.put(service_manifest(name, scaling=SLEEPS))
        await rig.bring_up(Key("default", name))
    code = Key("default", "code")
    kept, before = rig.status(chat).gateway_port, rig.status(code).gateway_port
    body = next(s for s in rig.cluster.all(SERVICE_KIND) if s["metadata"]["name"] == "code")
    rig.cluster.set_status(SERVICE_KIND, code, body["status"] | {"gatewayPort": kept})
    other = restarted(rig, *GATEWAY)
    await other.settle()
    assert other.status(chat).gateway_port == kept, "the older one"
    assert other.status(code).gateway_port not in (kept, None)
    assert before is not None


async def test_only_the_leader_gives_ports_out(rig: Rig, chat: Key) -> None:
    standby = Rig(cluster=rig.cluster)
    object.__setattr__(standby.reconciler, "is_leader", lambda: False)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await standby.settle()
    assert standby.world.ports.port(chat) is None
    await rig.settle()
    await standby.settle()
    assert standby.world.ports.port(chat) == rig.status(chat).gateway_port is not None


# ---- to zero ------------------------------------------------------------------------------------


async def test_who_goes_during_its_reconcile_takes_no_port_along(rig: Rig, chat: Key) -> None:
    cache = {"mode": "existing", "existingClaim": "mine"}
    rig.cluster.put(service_manifest(scaling=SLEEPS, cache=cache))
    get = rig.cluster.get

    async def slow(kind: Kind, namespace: str, name: str) -> Manifest:
        rig.cluster.remove(SERVICE_KIND, chat)
        return await get(kind, namespace, name)

    rig.cluster.get = slow  # type: ignore[method-assign]
    await rig.settle()
    assert rig.world.ports.port(chat) is None


async def test_while_the_first_pod_starts_the_gateway_answers(rig: Rig, chat: Key) -> None:
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.settle()
    told, led = "PATCH InferenceService/chat", "PATCH EndpointSlice/chat-gateway"
    writes = rig.cluster.writes
    assert writes.index(told) < writes.index(led), "the gateway listens where status says"
    body = ours(rig.cluster)
    assert body is not None
    assert body["metadata"]["labels"]["kubernetes.io/service-name"] == "chat"
    assert body["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == (
        "operator.serving.quire.dev"
    )
    assert body["metadata"]["ownerReferences"][0]["kind"] == "InferenceService"
    assert body["addressType"] == "IPv4"
    port = {"name": "http", "port": rig.status(chat).gateway_port, "protocol": "TCP"}
    assert body["ports"] == [port]
    assert leads_to(rig.cluster) == list(GATEWAY)
    await rig.bring_up(chat)
    assert leads_to(rig.cluster) == ["203.0.113.1"]


async def test_the_gateway_answers_before_the_last_pod_goes(rig: Rig, chat: Key) -> None:
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(chat)
    assert ours(rig.cluster) is None
    before = len(rig.cluster.writes)
    wish(rig, 0)
    await rig.settle()
    words = ("InferenceService", "Event")
    told = [w for w in rig.cluster.writes[before:] if not any(word in w for word in words)]
    assert told == ["PATCH EndpointSlice/chat-gateway", f"PATCH {deployment(rig)}"]
    assert await rig.wake(chat) == []


def deployment(rig: Rig) -> str:
    return f"Deployment/{rig.cluster.all(DEPLOYMENT)[0]['metadata']['name']}"


async def test_status_says_that_it_sleeps_and_what_wakes_it(asleep: Rig) -> None:
    ready = asleep.condition(CHAT)
    assert (ready.status, ready.reason) == ("False", "ScaledToZero")
    assert "asleep: the gateway holds the next request and wakes it" in ready.message
    for kind in ("RolloutComplete", "PodsReady", "ModelCached"):
        assert asleep.condition(CHAT, kind).status == "True"
    assert leads_to(asleep.cluster) == list(GATEWAY)
    asleep.cluster.now += 100_000
    assert await asleep.wake(CHAT) == []


async def test_a_new_operator_lets_sleepers_sleep(asleep: Rig) -> None:
    other = restarted(asleep, *GATEWAY)
    before = len(other.cluster.writes)
    await other.settle()
    assert other.cluster.writes[before:] == []
    assert other.status(CHAT).gateway_port == asleep.status(CHAT).gateway_port


@pytest.mark.parametrize("error", [Denied(403, "PATCH", "no right"), Unavailable(0, "PATCH", "x")])
async def test_without_the_slice_the_pods_stay(rig: Rig, chat: Key, error: Any) -> None:
    """As when the operator is killed in between: nothing has happened yet, or half of it."""
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(chat)
    rig.cluster.refuse[SLICE] = error
    wish(rig, 0)
    if isinstance(error, Denied):
        await rig.settle()
        assert rig.condition(chat).reason == "Refused"
    else:
        with pytest.raises(Unavailable):
            await rig.settle()
    assert replicas(rig.cluster) == [1]
    rig.cluster.refuse.clear()
    other = restarted(rig, *GATEWAY)
    await other.settle()
    assert replicas(other.cluster) == [0]
    assert ours(other.cluster) is not None


async def test_killed_between_slice_and_replicas_the_next_operator_goes_on(
    rig: Rig, chat: Key
) -> None:
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(chat)
    rig.cluster.refuse[DEPLOYMENT] = Unavailable(0, "PATCH", "killed here")
    wish(rig, 0)
    with pytest.raises(Unavailable):
        await rig.settle()
    assert ours(rig.cluster) is not None
    assert replicas(rig.cluster) == [1]
    rig.cluster.refuse.clear()
    other = restarted(rig, *GATEWAY)
    before = len(other.cluster.writes)
    await other.settle()
    assert replicas(other.cluster) == [0]
    assert not [w for w in other.cluster.writes[before:] if "EndpointSlice" in w]


async def test_a_strangers_slice_of_that_name_is_told_and_the_pods_stay(
    rig: Rig, chat: Key
) -> None:
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(chat)
    metadata = {"namespace": "default", "name": "chat-gateway"}
    head = {"apiVersion": SLICE.api_version, "kind": SLICE.kind, "metadata": metadata}
    rig.cluster.put(head | {"addressType": "IPv4", "endpoints": []}, "a stranger")
    wish(rig, 0)
    await rig.settle()
    ready = rig.condition(chat)
    assert ready.reason == "NameConflict"
    assert "EndpointSlice chat-gateway exists and is not ours" in ready.message
    assert replicas(rig.cluster) == [1]


async def test_without_a_ready_gateway_the_pods_stay_and_status_says_so(
    rig: Rig, chat: Key
) -> None:
    rig.gateway()
    rig.cluster.put(service_manifest(replicas=2, scaling=SLEEPS))
    await rig.bring_up(chat)
    wish(rig, 0)
    await rig.settle()
    assert replicas(rig.cluster) == [2]
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("False", "ScaledToZero")
    assert "the gateway has no ready pod" in ready.message
    assert "2 of its pods stay until then" in ready.message
    assert await rig.wake(chat) == []
    rig.gateway(*GATEWAY)
    await rig.settle()
    assert replicas(rig.cluster) == [0]


async def test_a_pause_is_a_pause(rig: Rig, chat: Key) -> None:
    """replicas 0 by hand, without idleSecondsToZero: no port, no slice, and who wrote it."""
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    wish(rig, 0)
    fields = {"f:spec": {"f:replicas": {}}}
    entry = {"manager": "kubectl-scale", "time": "2026-11-21T10:00:00Z", "fieldsV1": fields}
    body = rig.cluster.all(SERVICE_KIND)[0]
    body["metadata"]["managedFields"] = [entry]
    rig.cluster.put(body)
    await rig.settle()
    assert replicas(rig.cluster) == [0]
    assert ours(rig.cluster) is None
    message = rig.condition(chat).message
    assert message.startswith("spec.replicas is 0 (written by kubectl-scale): no pod runs")
    assert rig.world.snapshot(chat).gateway_ready is False  # type: ignore[union-attr]


async def test_a_pause_where_no_gateway_is_configured(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(chat)
    wish(rig, 0)
    await rig.settle()
    assert replicas(rig.cluster) == [0]
    assert ours(rig.cluster) is None
    assert "no gateway is configured" in rig.condition(chat).message


# ---- asleep -------------------------------------------------------------------------------------


async def test_addresses_follow_the_gateways_pods(asleep: Rig) -> None:
    asleep.gateway(GATEWAY[1])
    await asleep.settle()
    assert leads_to(asleep.cluster) == [GATEWAY[1]]
    asleep.gateway()
    await asleep.settle()
    assert leads_to(asleep.cluster) == []
    assert ours(asleep.cluster) is None
    assert "until then requests are refused" in asleep.condition(CHAT).message
    asleep.gateway(*GATEWAY)
    await asleep.settle()
    assert leads_to(asleep.cluster) == list(GATEWAY)


async def test_a_hand_on_the_slice_is_set_right(asleep: Rig) -> None:
    body = ours(asleep.cluster)
    assert body is not None
    asleep.cluster.put(body | {"endpoints": []})
    await asleep.settle()
    assert leads_to(asleep.cluster) == list(GATEWAY)
    asleep.cluster.remove(SLICE, Key("default", "chat-gateway"))
    await asleep.settle()
    assert leads_to(asleep.cluster) == list(GATEWAY)


async def test_a_new_revision_starts_no_pod_before_the_next_wake(asleep: Rig) -> None:
    wish(asleep, 0, engine={"maxModelLen": 512})
    for _ in range(3):
        await asleep.settle()
        asleep.cluster.run_deployments()
    assert asleep.cluster.all(POD) == []
    assert replicas(asleep.cluster) == [], "the old revision is gone, the new one is planned first"
    assert asleep.condition(CHAT, "RolloutComplete").status == "True"
    assert leads_to(asleep.cluster) == list(GATEWAY)
    wish(asleep, 1)
    await asleep.bring_up(CHAT)
    (pod,) = asleep.cluster.all(POD)
    assert "512" in str(pod["spec"])


async def test_a_prefetch_at_zero_is_told_before_the_sleep(rig: Rig, chat: Key) -> None:
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(replicas=0, scaling=SLEEPS, cache={"prefetch": True}))
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    assert rig.condition(chat).reason == "Fetching"
    assert leads_to(rig.cluster) == list(GATEWAY)
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "ScaledToZero"
