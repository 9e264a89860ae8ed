"""What the memory plan says of the files: the commit that is fetched, the size of their claim."""

import pytest

from quire_operator.kinds import (
    CLAIM,
    DEPLOYMENT,
    JOB,
)
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_plans import REFUSED, arguments, planned
from quire_operator.testing_pods import PLAN_REPORT


async def test_the_fetch_is_given_the_commit_that_was_planned(rig: Rig, chat: Key) -> None:
    rig.cluster.plans = {**PLAN_REPORT, "commit": "beef"}
    rig.cluster.put(service_manifest(model={"uri": "hf://org/model", "revision": "main"}))
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    told = arguments(rig)
    assert told[told.index("--revision") + 1] == "beef"
    model = rig.status(chat).model
    assert model is not None
    assert model.commit == "beef"


async def test_pods_that_fetch_for_themselves_keep_to_that_commit_too(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(cache={"mode": "none"}))
    await rig.bring_up(chat)
    pod = rig.cluster.all(DEPLOYMENT)[0]["spec"]["template"]["spec"]
    told = pod["initContainers"][0]["args"]
    assert told[told.index("--revision") + 1] == "c0ffee"
    assert pod["volumes"][0]["emptyDir"] == {}
    assert await rig.wake(chat) == []


@pytest.mark.parametrize(
    ("cache", "size"), [({}, "17Gi"), ({"size": "30Gi"}, "30Gi"), ({"size": "1Gi"}, "1Gi")]
)
async def test_the_claim_has_the_plans_size_unless_told(
    rig: Rig, chat: Key, cache: dict[str, object], size: str
) -> None:
    rig.cluster.plans = {**PLAN_REPORT, "bytesTotal": 16_100_000_000}
    rig.cluster.put(service_manifest(cache=cache))
    await rig.settle()
    [claim] = rig.cluster.all(CLAIM)
    assert claim["spec"]["resources"]["requests"]["storage"] == size
    assert await rig.wake(chat) == []


async def test_a_claim_too_small_for_the_plan_grows_while_its_files_are_not_there(
    rig: Rig, chat: Key
) -> None:
    """It was made for other files, or by an operator that did not know their size."""
    rig.cluster.put(service_manifest("other", cache={"size": "1Gi"}))
    await rig.settle()
    rig.cluster.plans = {**PLAN_REPORT, "bytesTotal": 16_100_000_000}
    rig.cluster.put(service_manifest())
    await rig.settle()
    [claim] = rig.cluster.all(CLAIM)
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi", "not before it is bound"
    rig.cluster.bind_claims()
    await rig.settle()
    [claim] = rig.cluster.all(CLAIM)
    assert claim["spec"]["resources"]["requests"]["storage"] == "17Gi"
    rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 16_100_000_000})
    await rig.settle()
    assert await rig.wake(chat) == []


@pytest.mark.parametrize("report", [None, REFUSED])
async def test_who_does_not_use_a_claim_does_not_grow_it(
    rig: Rig, chat: Key, report: dict[str, object] | None
) -> None:
    """Paused, or with an answer that says no: growth cannot be taken back."""
    rig.cluster.put(service_manifest("other", cache={"size": "1Gi"}))
    await rig.bring_up(Key("default", "other"))
    rig.cluster.plans = report
    replicas = 0 if report is None else 1
    rig.cluster.put(service_manifest(replicas=replicas, cache={"size": "500Gi"}))
    await rig.settle()
    [claim] = rig.cluster.all(CLAIM)
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"


async def test_a_claim_that_holds_the_files_is_large_enough(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest("other", cache={"size": "300Mi"}))
    await rig.bring_up(Key("default", "other"))
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    [claim] = rig.cluster.all(CLAIM)
    assert claim["spec"]["resources"]["requests"]["storage"] == "300Mi"


async def test_what_is_cached_already_is_read_from_its_claim(rig: Rig, chat: Key) -> None:
    """No source is asked: it may be away, or have moved on."""
    rig.cluster.put(service_manifest("other"))
    await rig.bring_up(Key("default", "other"))
    rig.cluster.plans = None
    rig.cluster.put(service_manifest(engine={"maxModelLen": 512}))
    await rig.settle()
    assert arguments(rig)[:2] == ["plan", "/models/model"]
    pod = rig.cluster.all(JOB)[0]["spec"]["template"]["spec"]
    assert pod["containers"][0]["volumeMounts"][0]["readOnly"] is True
    assert "podAffinity" in str(pod["affinity"]), "a volume of one node"
    rig.cluster.run_jobs({"plan": {"weightBytes": 5}})
    await rig.settle()
    plan = planned(rig, chat)
    assert (plan.commit, plan.bytes_total) == ("c0ffee", 1000), "of what lies there"
    assert len(rig.cluster.all(DEPLOYMENT)) == 2


async def test_files_on_a_claim_of_the_users_are_planned_there(held: Rig, chat: Key) -> None:
    model = {"uri": "pvc://models/llama/8b"}
    held.cluster.put(service_manifest(model=model, resources={"gpuMemory": "16Gi"}))
    await held.settle()
    assert arguments(held)[:3] == ["plan", "/models/llama/8b", "--memory"]
    pod = held.cluster.all(JOB)[0]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models"}
    held.cluster.run_jobs(REFUSED)
    await held.settle()
    assert held.cluster.all(DEPLOYMENT) == []
    assert held.condition(chat).reason == "DoesNotFit"
