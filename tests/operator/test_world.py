"""The cache: what it keeps, whom it wakes, and what the scaler sees in it."""

import pytest

from quire_operator import api
from quire_operator.kinds import CLAIM, POD, SERVICE, SERVICE_KIND, Manifest
from quire_operator.names import Key
from quire_operator.projections import project
from quire_operator.testing import service_manifest
from quire_operator.world import MAX_DECISIONS, ScalingReport, World

CHAT = Key("default", "chat")


class Woken:
    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.world = World(self.keys.append)

    def put(self, kind: object, body: Manifest) -> list[Key]:
        self.keys.clear()
        self.world.put(kind, project(kind, body))  # type: ignore[arg-type]
        return sorted(set(self.keys))


@pytest.fixture
def woken() -> Woken:
    found = Woken()
    found.put(SERVICE_KIND, stored(service_manifest(), "svc", "1"))
    return found


def stored(body: Manifest, uid: str, version: str) -> Manifest:
    metadata = body["metadata"] | {"uid": uid, "resourceVersion": version}
    return body | {"metadata": metadata | {"creationTimestamp": "2026-11-21T10:00:00Z"}}


def pod(name: str, version: str, ready: str | None = None, **status: object) -> Manifest:
    conditions = [] if ready is None else [{"type": "Ready", "status": ready}]
    body = {
        "metadata": {
            "namespace": "default",
            "name": name,
            "labels": {"serving.quire.dev/service": "chat", "serving.quire.dev/revision": "r1"},
        },
        "spec": {"containers": [{"name": "engine"}]},
        "status": {"conditions": conditions, "podIP": "203.0.113.5", **status},
    }
    return stored(body, f"uid-{name}", version)


def test_a_childs_event_wakes_its_service(woken: Woken) -> None:
    assert woken.put(POD, pod("p", "2")) == [CHAT]


def test_an_event_that_is_no_news_wakes_nobody(woken: Woken) -> None:
    woken.put(POD, pod("p", "9"))
    assert woken.put(POD, pod("p", "9")) == []
    assert woken.put(POD, pod("p", "8", "True")) == [], "older than what is known"


def test_a_successor_of_the_same_name_is_news(woken: Woken) -> None:
    woken.put(POD, pod("p", "9"))
    other = pod("p", "3")
    other["metadata"]["uid"] = "another"
    assert woken.put(POD, other) == [CHAT]


def test_a_strangers_event_wakes_nobody(woken: Woken) -> None:
    body = stored({"metadata": {"namespace": "default", "name": "db"}, "spec": {}}, "u", "2")
    assert woken.put(SERVICE, body) == []


def test_a_claims_event_wakes_all_that_use_it(woken: Woken) -> None:
    woken.put(SERVICE_KIND, stored(service_manifest("other"), "svc2", "2"))
    claims = service_manifest("apart", model={"uri": "hf://org/apart"})
    woken.put(SERVICE_KIND, stored(claims, "svc3", "3"))
    claim = {"metadata": {"namespace": "default", "name": "quire-627cbdc21b"}, "spec": {}}
    assert woken.put(CLAIM, stored(claim, "c", "4")) == [CHAT, Key("default", "other")]


def test_deletion_is_for_the_object_that_is_known(woken: Woken) -> None:
    woken.put(POD, pod("p", "9"))
    woken.world.drop(POD, Key("default", "p"), "an older uid")
    assert len(woken.world.pods(CHAT)) == 1
    woken.world.drop(POD, Key("default", "p"), "uid-p")
    assert woken.world.pods(CHAT) == []


def test_a_snapshot_counts_pods_as_the_scaler_needs_them(woken: Woken) -> None:
    woken.put(SERVICE_KIND, stored(service_manifest(replicas=5), "svc", "20"))
    stuck = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"}
    woken.put(POD, pod("a", "2", "True"))
    woken.put(POD, pod("b", "3", "False"))
    woken.put(POD, pod("c", "4", conditions=[stuck]))
    leaving = pod("d", "5", "True")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"
    woken.put(POD, leaving)
    begun = pod("e", "6", "False")
    begun["spec"]["nodeName"] = "node-1"
    woken.put(POD, begun)
    snapshot = woken.world.snapshot(CHAT)
    assert snapshot is not None
    assert [p.name for p in snapshot.ready_pods] == ["a"]
    assert snapshot.ready_pods[0].port == 8000
    assert snapshot.unschedulable == 1
    assert snapshot.starting == ("e",)
    assert snapshot.pending == 2, "b has no node yet, and one is wanted and not there yet"
    assert snapshot.draining == 1
    assert snapshot.replicas == 5
    assert snapshot.uid == "svc"


def test_a_pod_that_ended_is_none(woken: Woken) -> None:
    woken.put(POD, pod("a", "2", "True"))
    woken.put(POD, pod("b", "3", phase="Failed", reason="Evicted"))
    woken.put(POD, pod("c", "4", phase="Succeeded"))
    snapshot = woken.world.snapshot(CHAT)
    assert snapshot is not None
    assert snapshot.pending == 0


def test_no_snapshot_of_what_is_not_there(woken: Woken) -> None:
    assert woken.world.snapshot(Key("default", "none")) is None


def decision(number: int) -> api.ScalingDecision:
    return api.ScalingDecision(
        time="2026-11-21T10:00:00Z", from_replicas=number, to_replicas=number + 1, reason="r"
    )


def test_reports_wake_only_when_they_say_something_new(woken: Woken) -> None:
    report = ScalingReport(2, "True", "Active", "all well")
    woken.keys.clear()
    woken.world.record_scaling(CHAT, report)
    woken.world.record_scaling(CHAT, report)
    assert woken.keys == [CHAT]


def test_a_report_on_who_is_gone_is_not_kept_for_a_successor(woken: Woken) -> None:
    woken.world.drop(SERVICE_KIND, CHAT)
    woken.keys.clear()
    woken.world.record_scaling(CHAT, ScalingReport(2, "True", "Active", "m", decision(1)))
    assert woken.keys == []
    woken.put(SERVICE_KIND, stored(service_manifest(), "successor", "9"))
    assert woken.world.scaling(CHAT) is None


def test_a_successor_whose_predecessors_end_was_not_told_inherits_nothing(woken: Woken) -> None:
    woken.world.record_scaling(CHAT, ScalingReport(2, "True", "Active", "m", decision(1)))
    assert woken.put(SERVICE_KIND, stored(service_manifest(), "successor", "9")) == [CHAT]
    assert woken.world.scaling(CHAT) is None


def test_the_last_decisions_are_kept_newest_first(woken: Woken) -> None:
    for number in range(8):
        report = ScalingReport(number, "True", "Active", "m", decision(number))
        woken.world.record_scaling(CHAT, report)
    record = woken.world.scaling(CHAT)
    assert record is not None
    assert len(record.decisions) == MAX_DECISIONS
    assert record.decisions[0].from_replicas == 7


def test_start_up_is_the_first_readiness_that_was_seen_coming(woken: Woken) -> None:
    times = {"startTime": "2026-11-21T10:00:00Z"}
    woken.put(POD, pod("p", "2", "False", **times))
    ready = pod("p", "3", "True", **times)
    ready["status"]["conditions"][0]["lastTransitionTime"] = "2026-11-21T10:00:09Z"
    woken.put(POD, ready)
    assert woken.world.startup_seconds(CHAT) == 9
    woken.put(POD, pod("p", "4", "False", **times))
    again = pod("p", "5", "True", **times)
    again["status"]["conditions"][0]["lastTransitionTime"] = "2026-11-21T11:00:00Z"
    woken.put(POD, again)
    assert woken.world.startup_seconds(CHAT) == 9, "a recovery is no start-up"


def test_nothing_is_kept_of_who_is_gone(woken: Woken) -> None:
    times = {"startTime": "2026-11-21T10:00:00Z"}
    woken.put(POD, pod("p", "2", "False", **times))
    woken.world.record_scaling(CHAT, ScalingReport(2, "True", "Active", "m", decision(1)))
    woken.world.drop(SERVICE_KIND, CHAT)
    ready = pod("p", "3", "True", **times)
    ready["status"]["conditions"][0]["lastTransitionTime"] = "2026-11-21T10:00:09Z"
    woken.put(POD, ready)
    woken.world.drop(POD, Key("default", "p"))
    kept = {name: value for name, value in vars(woken.world).items() if name != "_objects"}
    sizes = {name: len(value) for name, value in kept.items() if isinstance(value, dict | set)}
    assert set(sizes.values()) == {0}, sizes


def claim(version: str, *owners: str, name: str = "model", namespace: str = "default") -> Manifest:
    metadata = {
        "namespace": namespace,
        "name": name,
        "ownerReferences": [{"uid": uid} for uid in owners],
    }
    return stored({"metadata": metadata}, f"uid-{namespace}-{name}", version)


def test_claims_are_known_by_who_owns_them_now(woken: Woken) -> None:
    def owned(uid: str) -> list[str]:
        return [view.meta.name for view in woken.world.claims_owned("default", uid)]

    woken.put(CLAIM, claim("1", "svc", "other"))
    woken.put(CLAIM, claim("2", "svc", name="before"))
    woken.put(CLAIM, claim("3", "svc", namespace="elsewhere"))
    assert owned("svc") == ["before", "model"]
    assert owned("other") == ["model"]
    woken.put(CLAIM, claim("4", "other"))
    assert owned("svc") == ["before"]
    woken.world.drop(CLAIM, Key("default", "before"))
    assert owned("svc") == []
    assert owned("other") == ["model"]
