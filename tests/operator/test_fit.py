"""Does it fit? Asked before anything is made; the whole way over an API server that behaves."""

from typing import Any

import pytest

from quire_operator import fetch, fit
from quire_operator.errors import Denied, QuotaExceeded
from quire_operator.kinds import (
    CLAIM,
    DEPLOYMENT,
    EVENT,
    JOB,
    NODE,
    POD,
    SERVICE_KIND,
    Manifest,
)
from quire_operator.names import Key
from quire_operator.testing import Rig, node_manifest, service_manifest
from quire_operator.testing_plans import LABEL, REFUSAL, REFUSED, arguments, jobs, planned
from quire_operator.testing_pods import PLAN_REPORT
from quire_operator.values import timestamp


async def test_a_plan_is_asked_for_before_anything_is_made(held: Rig, chat: Key) -> None:
    engine = {"maxModelLen": 512, "extraArgs": ["--block-size", "32"]}
    model = {"uri": "hf://org/model", "revision": "v2", "credentialsSecret": "hub"}
    resources = {"gpus": 0, "memory": "3Gi"}
    held.cluster.put(service_manifest(engine=engine, model=model, resources=resources))
    await held.settle()
    assert held.cluster.all(CLAIM) + held.cluster.all(DEPLOYMENT) == []
    [name] = jobs(held)
    assert name.startswith("chat-plan-")
    assert name.endswith("-1")
    told = arguments(held)
    memory = str(3 * 1024**3)
    assert told[:6] == ["plan", "hf://org/model", "--revision", "v2", "--memory", memory]
    assert told[6] == "--"
    assert told[-4:] == ["--max-model-len", "512", "--block-size", "32"]
    pod = held.cluster.all(JOB)[0]["spec"]["template"]["spec"]
    assert "persistentVolumeClaim" not in str(pod)
    assert "hub" in str(pod["containers"][0]["env"])
    for kind in ("Ready", "ModelCached", "Fits"):
        assert held.condition(chat, kind).reason == "Planning"
    assert await held.wake(chat) == []


async def test_its_answer_comes_into_status_and_its_job_goes(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest(resources={"gpus": 0, "memory": "3Gi"}))
    await held.settle()
    held.cluster.run_jobs(dict(PLAN_REPORT))
    await held.settle()
    plan = planned(held, chat)
    assert (plan.weight_bytes, plan.kv_blocks, plan.max_concurrency) == (800, 64, 2.0)
    assert (plan.commit, plan.bytes_total, plan.refusal) == ("c0ffee", 1000, None)
    assert plan.memory_bytes == 3 * 1024**3
    assert not any("plan" in name for name in jobs(held))
    fits = held.condition(chat, "Fits")
    assert (fits.status, fits.reason) == ("True", "Fits")
    assert "the container may take 3.0 GiB; 64 blocks of cache, 2.0 such" in fits.message
    model = held.status(chat).model
    assert model is not None
    assert model.bytes_total == 1000, "known before a byte is fetched"
    assert await held.wake(chat) == []


async def test_its_pods_last_words_are_enough(held: Rig, chat: Key) -> None:
    """The Job's own end comes a second or two later."""
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster._job_pod(held.cluster.all(JOB)[0], PLAN_REPORT)
    await held.settle()
    assert len(held.cluster.all(CLAIM)) == 1


async def test_what_does_not_fit_makes_nothing_and_says_so(rig: Rig, chat: Key) -> None:
    rig.cluster.plans = REFUSED
    rig.cluster.put(service_manifest(resources={"gpuMemory": "16Gi"}))
    await rig.settle()
    assert rig.cluster.all(CLAIM) + rig.cluster.all(DEPLOYMENT) + rig.cluster.all(JOB) == []
    for kind in ("Ready", "ModelCached", "Fits"):
        told = rig.condition(chat, kind)
        assert (told.status, told.reason, told.message) == ("False", "DoesNotFit", REFUSAL)
    assert planned(rig, chat).refusal == REFUSAL
    assert planned(rig, chat).weight_bytes == 800
    assert await rig.wake(chat) == []
    rig.cluster.now += 1000
    assert await rig.wake(chat) == []


async def test_an_edit_heals_it(rig: Rig, chat: Key) -> None:
    rig.cluster.plans = REFUSED
    rig.cluster.put(service_manifest(resources={"gpuMemory": "16Gi"}))
    await rig.settle()
    rig.cluster.plans = dict(PLAN_REPORT)
    rig.cluster.put(service_manifest(resources={"gpuMemory": "24Gi"}))
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"
    assert rig.condition(chat, "Fits").status == "True"


async def test_an_earlier_revision_serves_on(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    [before] = rig.cluster.all(DEPLOYMENT)
    rig.cluster.plans = REFUSED
    rig.cluster.put(service_manifest(engine={"maxModelLen": 131072}))
    await rig.bring_up(chat)
    assert [d["metadata"]["name"] for d in rig.cluster.all(DEPLOYMENT)] == [
        before["metadata"]["name"]
    ]
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("False", "DoesNotFit")
    assert "still serves" in ready.message
    rig.cluster.put(service_manifest(replicas=3, engine={"maxModelLen": 131072}))
    await rig.settle()
    assert rig.cluster.all(DEPLOYMENT)[0]["spec"]["replicas"] == 3
    rig.cluster.plans = dict(PLAN_REPORT)
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.condition(chat).status == "True"
    assert rig.condition(chat, "Fits").reason != "DoesNotFit", "asked anew for what it went back to"


async def test_a_label_that_appears_heals_it(rig: Rig, chat: Key) -> None:
    rig.cluster.plans = REFUSED
    rig.cluster.put(node_manifest("small", {LABEL: "16384"}))
    rig.cluster.put(service_manifest())
    await rig.settle()
    assert rig.condition(chat).reason == "DoesNotFit"
    assert rig.again[chat] == fit.NODES_SECONDS
    rig.cluster.now += fit.NODES_SECONDS
    assert await rig.wake(chat) == []
    rig.cluster.plans = dict(PLAN_REPORT)
    rig.cluster.put(node_manifest("large", {LABEL: "81559"}))
    rig.cluster.now += fit.NODES_SECONDS
    await rig.wake(chat)
    assert planned(rig, chat).memory_bytes == 81559 * 1024**2
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_without_nodes_that_tell_nothing_is_refused(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.condition(chat).status == "True"
    fits = rig.condition(chat, "Fits")
    assert (fits.status, fits.reason) == ("Unknown", "MemoryUnknown")
    assert LABEL in fits.message
    assert "needs" in fits.message


async def test_no_answer_is_wanted_of_nodes_that_we_may_not_see(chat: Key) -> None:
    rig = Rig()
    listed = rig.cluster.list_objects

    async def denied(kind: object, *args: Any, **more: Any) -> list[Manifest]:
        if kind is NODE:
            raise Denied(403, "GET nodes", "nodes is forbidden")
        return await listed(kind, *args, **more)  # type: ignore[arg-type]

    rig.cluster.list_objects = denied  # type: ignore[assignment, method-assign]
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.condition(chat).status == "True"
    assert rig.condition(chat, "Fits").reason == "MemoryUnknown"


async def test_a_failure_is_told_and_asked_again_later_and_later(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    waits = []
    for attempt in range(1, 6):
        numbers = [name.rpartition("-")[2] for name in jobs(held)]
        assert numbers == [str(number) for number in range(max(1, attempt - 1), attempt + 1)]
        held.cluster.run_jobs({"reason": "SourceNotFound", "message": "no such repository"})
        await held.settle()
        ready = held.condition(chat)
        assert (ready.status, ready.reason) == ("False", "SourceNotFound")
        assert ready.message.startswith(f"no such repository ({attempt} attempt")
        assert held.condition(chat, "Fits").status == "Unknown"
        assert await held.wake(chat) == []
        wait = held.again[chat]
        assert wait is not None
        waits.append(round(wait))
        held.cluster.now += wait
        await held.wake(chat)
        assert held.condition(chat).reason == "SourceNotFound", "until the next one has spoken"
    turns = [e["reason"] for e in held.cluster.all(EVENT) if e["reason"] == "SourceNotFound"]
    assert len(turns) == 1, "an Event for a turn, none for an attempt"
    assert waits == [fetch.retry_seconds(number) for number in range(1, 6)]
    assert held.cluster.all(CLAIM) == []


async def test_an_attempt_that_is_held_up_is_told_in_place_of_the_one_before(
    held: Rig, chat: Key
) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster.run_jobs({"reason": "SourceNotFound", "message": "no such repository"})
    await held.settle()
    held.cluster.now += 10
    await held.wake(chat)
    held.cluster.run_jobs()
    [pod] = [p for p in held.cluster.all(POD) if p["metadata"]["name"].endswith("-2-pod")]
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    status = {"name": "plan", "state": {"waiting": waiting}}
    held.cluster.set_status(
        POD,
        Key("default", pod["metadata"]["name"]),
        {"phase": "Pending", "containerStatuses": [status]},
    )
    await held.settle()
    assert held.condition(chat).reason == "ImagePull"


async def test_another_secret_is_tried_at_once(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster.run_jobs({"reason": "SourceUnauthorized", "message": "401"})
    await held.settle()
    model = {"uri": "hf://org/model", "credentialsSecret": "token"}
    held.cluster.put(service_manifest(model=model))
    await held.settle()
    assert [name.rpartition("-")[2] for name in jobs(held)] == ["2"]
    assert "token" in str(held.cluster.all(JOB)[0]["spec"])


async def test_a_plan_that_cannot_start_says_why_and_is_replaced_once_mended(
    held: Rig, chat: Key
) -> None:
    held.cluster.put(service_manifest(engine={"image": "typo:v1"}))
    await held.settle()
    held.cluster.run_jobs()
    [pod] = held.cluster.all(POD)
    waiting = {"reason": "ImagePullBackOff", "message": "no such tag"}
    pod["status"]["containerStatuses"] = [{"name": "plan", "state": {"waiting": waiting}}]
    held.cluster.put(pod)
    await held.settle()
    assert held.condition(chat).reason == "ImagePull"
    held.cluster.put(service_manifest(engine={"image": "good:v1"}))
    await held.settle()
    [job] = held.cluster.all(JOB)
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "good:v1"


async def test_a_plan_whose_pod_died_without_a_word_is_asked_again(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    name = jobs(held)[0]
    at = timestamp(held.cluster.now)
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": at, "message": "backoff"}
    held.cluster.set_status(JOB, Key("default", name), {"conditions": [failed]})
    await held.settle()
    assert held.condition(chat).reason == "Interrupted"
    held.cluster.now += 10
    await held.wake(chat)
    held.cluster.run_jobs(dict(PLAN_REPORT))
    await held.settle()
    assert len(held.cluster.all(CLAIM)) == 1


async def test_a_plan_that_somebody_killed_is_no_fault_of_its_flags(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster._job_pod(held.cluster.all(JOB)[0], {"reason": "anything"})
    [pod] = held.cluster.all(POD)
    for end, reason in (
        ({"exitCode": 137, "reason": "Error"}, "Interrupted"),
        ({"exitCode": 137, "reason": "OOMKilled"}, "OOMKilled"),
    ):
        pod["status"]["containerStatuses"] = [{"name": "plan", "state": {"terminated": end}}]
        held.cluster.put(pod)
        failed = {"type": "Failed", "status": "True"}
        at = Key("default", jobs(held)[0])
        held.cluster.set_status(JOB, at, {"conditions": [failed]})
        await held.settle()
        assert held.condition(chat).reason == reason
        assert "the plan was killed" in held.condition(chat).message


async def test_a_plan_that_somebody_deletes_is_asked_for_again(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster.remove(JOB, Key("default", jobs(held)[0]))
    await held.settle()
    assert len(jobs(held)) == 1


async def test_an_operator_that_dies_with_an_answer_in_hand_finds_it_again(
    held: Rig, chat: Key
) -> None:
    """The Job stays until status has its answer."""
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster.refuse[SERVICE_KIND] = QuotaExceeded(403, "PATCH status", "exceeded quota")
    held.cluster.run_jobs(dict(PLAN_REPORT))
    with pytest.raises(QuotaExceeded):
        await held.settle()
    assert any("plan" in name for name in jobs(held))
    held.cluster.refuse.clear()
    await held.wake(chat)
    assert planned(held, chat).bytes_total == 1000
    assert not any("plan" in name for name in jobs(held))


async def test_a_plan_that_has_just_failed_is_no_crash(held: Rig, chat: Key) -> None:
    """Its pod is seen to have ended before its Job is."""
    held.cluster.put(service_manifest())
    await held.settle()
    report = {"reason": "SourceUnauthorized", "message": "401"}
    held.cluster._job_pod(held.cluster.all(JOB)[0], report)
    await held.settle()
    assert held.condition(chat).reason == "Planning"


async def test_a_quota_that_lets_no_plan_run_is_told(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    words = 'pods "x" is forbidden: exceeded quota: pods'
    of = {"kind": "Job", "uid": held.cluster.all(JOB)[0]["metadata"]["uid"]}
    event = {"apiVersion": "v1", "kind": "Event", "type": "Warning", "message": words}
    event |= {"involvedObject": of}
    held.cluster.put(event | {"metadata": {"name": "e", "namespace": "default"}})
    for _ in range(5):
        again = held.again[chat]
        assert again is not None, "nobody else wakes it: events are not watched"
        held.cluster.now += again
        await held.wake(chat)
    assert held.condition(chat).reason == "QuotaExceeded"
    assert words in held.condition(chat).message


@pytest.mark.parametrize(("prefetch", "count"), [(False, 0), (True, 1)])
async def test_at_zero_only_a_prefetch_is_planned(
    held: Rig, chat: Key, prefetch: bool, count: int
) -> None:
    held.cluster.put(service_manifest(replicas=0, cache={"prefetch": prefetch}))
    await held.settle()
    assert len(jobs(held)) == count
    fits = held.condition(chat, "Fits")
    assert (fits.status, fits.reason) == ("Unknown", "Planning" if prefetch else "NotPlanned")


async def test_a_service_that_is_stopped_meanwhile_asks_no_more(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    held.cluster.put(service_manifest(replicas=0))
    await held.settle()
    assert jobs(held) == []


async def test_an_edit_meanwhile_takes_the_question_back(held: Rig, chat: Key) -> None:
    held.cluster.put(service_manifest())
    await held.settle()
    [before] = jobs(held)
    held.cluster.put(service_manifest(engine={"maxModelLen": 512}))
    await held.settle()
    [after] = jobs(held)
    assert after != before
    held.cluster.run_jobs(dict(PLAN_REPORT))
    await held.settle()
    held.cluster.put(service_manifest())
    await held.settle()
    assert any("plan" in name for name in jobs(held)), "the first answer was another question's"


async def test_two_services_ask_each_for_itself(held: Rig, chat: Key) -> None:
    other = Key("default", "other")
    held.cluster.put(service_manifest())
    held.cluster.put(service_manifest("other", engine={"maxModelLen": 131072}))
    await held.settle()
    _, theirs = sorted(jobs(held))
    for job in held.cluster.all(JOB):
        refused = job["metadata"]["name"] == theirs
        held.cluster.end_job(job, REFUSED if refused else PLAN_REPORT)
    await held.settle()
    assert held.condition(other).reason == "DoesNotFit"
    assert held.condition(chat).reason != "DoesNotFit"
    [claim] = held.cluster.all(CLAIM)
    owners = [owner["name"] for owner in claim["metadata"]["ownerReferences"]]
    assert owners == ["chat"], "who is refused has no part in the claim"
    held.cluster.remove(SERVICE_KIND, chat)
    held.cluster.remove(SERVICE_KIND, other)
    await held.settle()
    assert held.cluster.all(JOB) == []
