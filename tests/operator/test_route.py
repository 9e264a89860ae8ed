"""To zero and back: who asks a service that may sleep finds somebody, its pods or the gateway."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_operator.errors import Denied, Unavailable
from quire_operator.kinds import (
    CHILDREN,
    DEPLOYMENT,
    LEASE,
    POD,
    SERVICE_KIND,
    SLICE,
    Kind,
    Manifest,
)
from quire_operator.names import Key
from quire_operator.testing import FakeCluster, Rig, service_manifest

CHAT = Key("default", "chat")
SLEEPS = {"mode": "builtin", "idleSecondsToZero": 60}
GATEWAY = ("198.51.100.7", "198.51.100.8")


def ours(cluster: FakeCluster) -> Manifest | None:
    """The slice that leads to the gateway."""
    found = [body for body in cluster.all(SLICE) if _is_ours(body)]
    return found[0] if found else None


def _is_ours(body: Manifest) -> bool:
    return bool(body["metadata"]["name"] == "chat-gateway")


def leads_to(cluster: FakeCluster) -> list[str]:
    """Everybody who would get a request to the service's address."""
    return [
        endpoint["addresses"][0]
        for body in cluster.all(SLICE)
        for endpoint in body["endpoints"]
        if endpoint["conditions"]["ready"]
    ]


def wish(rig: Rig, replicas: int, **spec: Any) -> None:
    """Writes spec.replicas, and what else changes."""
    body = rig.cluster.all(SERVICE_KIND)[0]
    body["spec"] |= {"replicas": replicas, **spec}
    rig.cluster.put(body, "quire-scaler")


def replicas(cluster: FakeCluster) -> list[int]:
    return [d["spec"]["replicas"] for d in cluster.all(DEPLOYMENT)]


def restarted(rig: Rig, *gateway: str) -> Rig:
    """Another operator over the same cluster, its world filled before it begins."""
    rig.cluster._listeners.clear()
    other = Rig(cluster=rig.cluster)
    for kind in (*CHILDREN, SERVICE_KIND):
        for body in rig.cluster.all(kind):
            other._feed(kind, "MODIFIED", body)
    if gateway:
        other.gateway(*gateway)
    return other


class Witness:
    """Looks at every change, and notes when an order was broken."""

    def __init__(self, rig: Rig) -> None:
        self.broken: list[str] = []
        self._rig = rig
        self._replicas: dict[str, int] = {}
        rig.cluster.subscribe(self._see)

    def _see(self, kind: Kind, event: str, body: Manifest) -> None:
        if kind is DEPLOYMENT:
            name, count = body["metadata"]["name"], body["spec"]["replicas"]
            count = 0 if event == "DELETED" else count
            before, self._replicas[name] = self._replicas.get(name, 0), count
            went = before > 0 and sum(self._replicas.values()) == 0
            if went and self._must_be_held() and ours(self._rig.cluster) is None:
                self.broken.append(f"{name} went to zero with nobody to take its requests")
        by_us = self._rig.cluster.writes[-1:] == ["DELETE EndpointSlice/chat-gateway"]
        ours_went = kind is SLICE and event == "DELETED" and by_us and _is_ours(body)
        if ours_went and self._must_be_held() and not leads_to(self._rig.cluster):
            gateway = self._rig.world.gateway
            if gateway is not None and gateway.addresses:
                self.broken.append("the gateway was let go before a pod answers")

    def _must_be_held(self) -> bool:
        services = self._rig.cluster.all(SERVICE_KIND)
        scaling = services[0]["spec"].get("scaling", {}) if services else {}
        return "idleSecondsToZero" in scaling and self._rig.world.gateway is not None


@pytest.fixture
async def asleep(rig: Rig) -> Rig:
    """A service that was up and has been put to sleep."""
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(CHAT)
    wish(rig, 0)
    await rig.settle()
    rig.cluster.run_deployments()
    await rig.settle()
    return rig


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


# ---- and back -----------------------------------------------------------------------------------


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


# ---- activation ---------------------------------------------------------------------------------


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


# ---- whatever happens ---------------------------------------------------------------------------

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
