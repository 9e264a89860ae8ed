"""The whole way through one service's life, over an API server that behaves."""

import pytest

from quire_operator import api, observe
from quire_operator.errors import QuotaExceeded, Unavailable
from quire_operator.fetch_environment import Network
from quire_operator.kinds import (
    BUDGET,
    CLAIM,
    DEPLOYMENT,
    JOB,
    POD,
    SERVICE,
    SERVICE_KIND,
)
from quire_operator.names import Key
from quire_operator.pods import spec_digest
from quire_operator.testing import Rig, service_manifest
from quire_operator.world import ScalingReport


async def test_a_service_comes_up(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("True", "Ready")
    status = rig.status(chat)
    assert status.replicas == status.ready_replicas == 1
    assert status.url == "http://chat.default.svc.cluster.local/v1"
    assert status.model is not None
    assert status.model.commit == "c0ffee"
    assert status.model.bytes_done == 1000
    assert status.selector == ("app.kubernetes.io/name=quire-engine,serving.quire.dev/service=chat")


async def test_a_second_pass_writes_nothing(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(replicas=2))
    await rig.bring_up(chat)
    rig.cluster.now += 100
    assert await rig.wake(chat) == []


async def test_a_pass_hashes_the_spec_a_few_times_only(
    rig: Rig, chat: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rule asks for the pods of the wanted revision, which is a hash of the spec."""
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    hashed = []

    def counted(spec: api.Spec) -> str:
        hashed.append(spec)
        return spec_digest(spec)

    monkeypatch.setattr(observe, "spec_digest", counted)
    await rig.wake(chat)
    assert 0 < len(hashed) <= 8


async def test_a_new_operator_writes_nothing(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    other = Rig(image="engine:v2", network=Network(hf_endpoint="http://mirror"))
    other.reconciler = type(other.reconciler)(
        client=rig.cluster,
        world=other.world,
        defaults=other.reconciler.defaults,
        inquirer=other.inquirer,
        nodes=other.reconciler.nodes,
        metrics=other.reconciler.metrics,
        is_leader=lambda: True,
        wall=lambda: rig.cluster.now,
    )
    for kind in (SERVICE_KIND, DEPLOYMENT, SERVICE, BUDGET, CLAIM, JOB, POD):
        for body in rig.cluster.all(kind):
            other._feed(kind, "MODIFIED", body)
    before = len(rig.cluster.writes)
    await other.settle()
    assert rig.cluster.writes[before:] == []


async def test_a_new_operator_keeps_the_scalers_last_words(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(scaling={"mode": "builtin"}))
    rig.world.record_scaling(chat, ScalingReport(1, "True", "Active", "all well"))
    await rig.bring_up(chat)
    assert rig.condition(chat, "Scaling").reason == "Active"
    rig.world._scaling.clear()  # as after a restart
    assert await rig.wake(chat) == []


async def test_a_scaler_that_is_switched_off_wants_nothing_more(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(scaling={"mode": "builtin"}))
    decision = api.ScalingDecision(
        time="2026-11-21T10:00:00Z", from_replicas=1, to_replicas=4, reason="r"
    )
    rig.world.record_scaling(chat, ScalingReport(4, "True", "Active", "all well", decision))
    await rig.bring_up(chat)
    scaling = rig.status(chat).scaling
    assert scaling is not None
    assert scaling.desired == 4
    rig.cluster.put(service_manifest(scaling={"mode": "none"}))
    await rig.settle()
    scaling = rig.status(chat).scaling
    assert scaling is not None
    assert (scaling.desired, scaling.decisions) == (None, [decision])
    assert "Scaling" not in [c.type for c in rig.status(chat).conditions]
    assert await rig.wake(chat) == []


async def test_scaling_changes_replicas_only(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    before = rig.cluster.all(DEPLOYMENT)[0]
    count = len(rig.cluster.writes)
    rig.cluster.put(service_manifest(replicas=3))
    await rig.settle()
    after = rig.cluster.all(DEPLOYMENT)[0]
    assert after["spec"]["replicas"] == 3
    assert after["spec"]["template"] == before["spec"]["template"]
    sent = {w for w in rig.cluster.writes[count:] if "InferenceService" not in w}
    assert sent == {f"PATCH Deployment/{before['metadata']['name']}"}


async def test_a_new_revision_replaces_the_old_when_it_is_ready(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    old = rig.cluster.all(DEPLOYMENT)[0]["metadata"]["name"]
    rig.cluster.put(service_manifest(engine={"maxModelLen": 512}))
    await rig.settle()
    assert len(rig.cluster.all(DEPLOYMENT)) == 2
    assert rig.condition(chat, "RolloutComplete").status == "False"
    assert "still serves" in rig.condition(chat).message
    rig.cluster.run_deployments()
    await rig.settle()
    names = [d["metadata"]["name"] for d in rig.cluster.all(DEPLOYMENT)]
    assert len(names) == 1
    assert names != [old]
    assert rig.condition(chat, "RolloutComplete").status == "True"


async def test_a_stranger_of_our_name_is_left_alone(rig: Rig, chat: Key) -> None:
    stranger = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {"ports": [{"port": 5432}]},
    }
    rig.cluster.put(stranger)
    rig.cluster.put(service_manifest())
    await rig.settle()
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("False", "NameConflict")
    assert "Service chat exists and is not ours" in ready.message
    assert rig.cluster.all(SERVICE)[0]["spec"] == stranger["spec"]
    rig.cluster.remove(SERVICE, chat)
    await rig.wake(chat)
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_what_kserves_kind_of_the_same_name_has_is_not_a_predecessors(
    rig: Rig, chat: Key
) -> None:
    kserve = {"apiVersion": "v1", "kind": "Pod"}  # stands for it: an owner that is there
    rig.cluster.put(kserve | {"metadata": {"name": "kserve", "namespace": "default"}})
    [there] = rig.cluster.all(POD)
    owner = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
    owner |= {"name": "chat", "uid": there["metadata"]["uid"], "controller": True}
    metadata = {"name": "chat", "namespace": "default", "ownerReferences": [owner]}
    rig.cluster.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}})
    rig.cluster.put(service_manifest())
    await rig.settle()
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("False", "NameConflict")
    assert "owned by InferenceService chat" in ready.message


async def test_what_a_predecessor_left_and_does_not_go_is_told(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    live = rig.cluster.all(SERVICE)[0]
    rig.cluster.put(live | {"metadata": live["metadata"] | {"finalizers": ["example.com/hold"]}})
    rig.cluster.remove(SERVICE_KIND, chat)
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    ready = rig.condition(chat)
    words = "Service chat of the service's predecessor is still being removed"
    assert (ready.status, ready.reason) == ("True", "Ready")
    assert ready.message == f"1 of 1 replicas ready; {words}"
    rig.cluster.put(service_manifest(replicas=0))
    await rig.settle()
    ready = rig.condition(chat)
    assert (ready.status, ready.reason, ready.message) == ("False", "PredecessorLeaving", words)
    assert rig.again[chat] == 10
    rig.cluster.remove(SERVICE, chat)
    await rig.settle()
    assert rig.condition(chat).reason == "ScaledToZero"


async def test_what_a_hand_changed_is_set_right(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    service = rig.cluster.all(SERVICE)[0]
    service["spec"]["ports"][0]["targetPort"] = 9999
    rig.cluster.put(service)
    await rig.settle()
    assert rig.cluster.all(SERVICE)[0]["spec"]["ports"][0]["targetPort"] == 8000


async def test_zero_replicas_keep_the_cache_and_say_so(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest(replicas=0))
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "ScaledToZero"
    assert rig.cluster.all(POD) == [] or all("fetch" in str(p) for p in rig.cluster.all(POD))
    assert len(rig.cluster.all(CLAIM)) == 1


async def test_a_quota_is_told_and_tried_again(rig: Rig, chat: Key) -> None:
    words = 'persistentvolumeclaims "x" is forbidden: exceeded quota: storage'
    rig.cluster.refuse[CLAIM] = QuotaExceeded(403, "POST claims", words)
    rig.cluster.put(service_manifest())
    await rig.settle()
    ready = rig.condition(chat)
    assert (ready.reason, ready.message) == ("QuotaExceeded", words)
    assert rig.again[chat] is not None
    rig.cluster.refuse.clear()
    await rig.wake(chat)
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_an_outage_is_the_queues_to_retry(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    rig.cluster.refuse[SERVICE] = Unavailable(503, "PATCH services", "etcd is slow")
    with pytest.raises(Unavailable):
        await rig.settle()


async def test_a_pod_template_that_cannot_be_merged_is_told(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(podTemplate={"spec": {"containers": {"a": 1}}}))
    await rig.settle()
    assert rig.condition(chat).reason == "InvalidPodTemplate"


async def test_a_spec_of_another_time_is_told(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(replicas="many"))
    await rig.settle()
    ready = rig.condition(chat)
    assert ready.reason == "InvalidSpec"
    assert "$.replicas" in ready.message


async def test_a_service_on_its_way_out_is_left_to_garbage_collection(rig: Rig, chat: Key) -> None:
    manifest = service_manifest()
    manifest["metadata"]["deletionTimestamp"] = "2026-11-21T00:00:00Z"
    rig.cluster.put(manifest)
    await rig.settle()
    assert rig.cluster.writes == []
