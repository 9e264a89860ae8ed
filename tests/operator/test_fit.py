"""Does it fit? Asked before anything is made; the whole way over an API server that behaves."""

from typing import Any

import pytest

from quire_operator import api, fetch, fit, names
from quire_operator.errors import Denied, QuotaExceeded
from quire_operator.kinds import (
    CHILDREN,
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
from quire_operator.testing_pods import PLAN_REPORT
from quire_operator.values import timestamp

LABEL = "nvidia.com/gpu.memory"
REFUSAL = "it needs 17.1 GiB, got 14.4 GiB; the largest context that fits is 12,288"
REFUSED: dict[str, object] = {**PLAN_REPORT, "reason": "DoesNotFit", "message": REFUSAL}


@pytest.fixture
def held(rig: Rig) -> Rig:
    """Plans wait until the test says how they end."""
    rig.cluster.plans = None
    return rig


def jobs(rig: Rig) -> list[str]:
    return [job["metadata"]["name"] for job in rig.cluster.all(JOB)]


def arguments(rig: Rig) -> list[str]:
    [job] = rig.cluster.all(JOB)
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def planned(rig: Rig, key: Key) -> api.PlanStatus:
    plan = rig.status(key).plan
    assert plan is not None
    return plan


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


async def test_a_question_that_fails_holds_up_nothing_that_is_cached(rig: Rig, chat: Key) -> None:
    """Or files that rotted while nobody used them were never repaired."""
    rig.cluster.put(service_manifest("other"))
    await rig.bring_up(Key("default", "other"))
    rig.cluster.plans = {"reason": "ModelCorrupt", "message": "a header is broken"}
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.condition(chat).status == "True"
    assert unanswered(rig, chat) == "a header is broken (1 attempt so far, trying again)"


def unanswered(rig: Rig, key: Key) -> str:
    """The message of Fits while the question fails."""
    fits = rig.condition(key, "Fits")
    assert (fits.status, fits.reason) == ("Unknown", "ModelCorrupt")
    return fits.message


async def serve_unanswered(rig: Rig, chat: Key) -> None:
    """A service whose model lies on a claim, and whose question has failed once."""
    rig.cluster.put(service_manifest("other"))
    await rig.bring_up(Key("default", "other"))
    rig.cluster.plans = None
    rig.cluster.put(service_manifest(resources={"gpuMemory": "16Gi"}))
    await rig.settle()
    rig.cluster.run_jobs({"reason": "ModelCorrupt", "message": "a header is broken"})
    await rig.bring_up(chat)
    assert rig.condition(chat).status == "True"


async def test_it_is_asked_on_later_and_later_until_there_is_an_answer(rig: Rig, chat: Key) -> None:
    await serve_unanswered(rig, chat)
    waits = []
    for attempt in range(2, 11):
        assert await rig.wake(chat) == [], "nothing is written while it waits"
        wait = rig.again[chat]
        assert wait is not None
        waits.append(round(wait))
        rig.cluster.now += wait
        await rig.wake(chat)
        assert unanswered(rig, chat).startswith("a header is broken"), "until this one has spoken"
        rig.cluster.run_jobs({"reason": "ModelCorrupt", "message": "a header is broken"})
        await rig.settle()
        assert f"{attempt} attempts so far" in unanswered(rig, chat)
        assert rig.condition(chat).reason == "Ready"
    assert waits == sorted(waits)
    assert waits[:3] == [2, 4, 8]
    assert waits[-1] == 300, "no pod every 10 s for a number that nobody waits for"
    rig.cluster.now += 300
    await rig.wake(chat)
    rig.cluster.run_jobs(dict(PLAN_REPORT))
    await rig.settle()
    assert rig.condition(chat, "Fits").status == "True"
    assert jobs(rig) == []
    assert await rig.wake(chat) == []


async def test_a_service_that_was_asleep_meanwhile_is_asked_about_again(
    rig: Rig, chat: Key
) -> None:
    await serve_unanswered(rig, chat)
    rig.cluster.put(service_manifest(replicas=0, resources={"gpuMemory": "16Gi"}))
    await rig.settle()
    assert jobs(rig) == []
    asleep = rig.condition(chat, "Fits")
    assert asleep.message == "asked when replicas is above 0"
    rig.cluster.put(service_manifest(resources={"gpuMemory": "16Gi"}))
    await rig.settle()
    assert len(jobs(rig)) == 1
    rig.cluster.run_jobs(REFUSED)
    await rig.settle()
    assert rig.condition(chat, "Fits").reason == "DoesNotFit"
    assert rig.condition(chat, "RolloutComplete").reason != "ProgressDeadlineExceeded"
    assert len(rig.cluster.all(DEPLOYMENT)) == 2, "what runs is not stopped"


@pytest.mark.parametrize("answered", [True, False])
async def test_who_goes_back_to_what_serves_is_told_what_it_needs(
    rig: Rig, chat: Key, answered: bool
) -> None:
    """However slow the answers are."""
    rig.cluster.put(node_manifest("large", {LABEL: "81559"}))
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.plans = None
    rig.cluster.put(service_manifest(engine={"maxModelLen": 131072}))
    await rig.settle()
    if answered:
        rig.cluster.run_jobs(REFUSED)
        await rig.settle()
        assert rig.condition(chat).reason == "DoesNotFit"
    rig.cluster.put(service_manifest())
    for _ in range(3):
        await rig.wake(chat)
    assert rig.condition(chat, "Fits").reason == "Planning"
    assert len(jobs(rig)) == 1
    assert str(81559 * 1024**2) in arguments(rig), "with the memory that the nodes have"
    rig.cluster.run_jobs(dict(PLAN_REPORT))
    await rig.settle()
    assert rig.condition(chat, "Fits").status == "True"
    assert jobs(rig) == []
    assert await rig.wake(chat) == []


# ---- a refusal that comes while the fetch runs ---------------------------------------------------

LARGER = {"maxModelLen": 131072}


def fetches(rig: Rig) -> list[str]:
    return [name for name in jobs(rig) if "-fetch-" in name]


async def fetch_then_refuse(rig: Rig, chat: Key) -> str:
    """A fetch that runs, while its service is edited to a context that does not fit; its Job."""
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    rig.cluster.run_jobs()
    await rig.settle()
    [job] = fetches(rig)
    rig.cluster.now += 30
    rig.cluster.plans = REFUSED
    rig.cluster.put(service_manifest(engine=LARGER))
    await rig.settle()
    assert rig.condition(chat).reason == "DoesNotFit"
    return job


async def test_a_refusal_ends_the_fetch_and_who_asks_again_goes_on_from_there(
    rig: Rig, chat: Key
) -> None:
    await fetch_then_refuse(rig, chat)
    assert fetches(rig) == []
    [claim] = rig.cluster.all(CLAIM)
    assert await rig.wake(chat) == []
    rig.cluster.plans = dict(PLAN_REPORT)
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.now += 15
    await rig.wake(chat)
    assert len(fetches(rig)) == 1
    assert rig.cluster.all(CLAIM)[0]["metadata"]["uid"] == claim["metadata"]["uid"]
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_an_answer_that_is_waited_for_ends_no_fetch(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    [job] = fetches(rig)
    rig.cluster.plans = None
    rig.cluster.put(service_manifest(engine=LARGER))
    await rig.settle()
    assert rig.condition(chat, "Fits").reason == "Planning"
    assert fetches(rig) == [job]


async def test_a_fetch_that_another_service_wants_goes_on(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest("other"))
    job = await fetch_then_refuse(rig, chat)
    assert fetches(rig) == [job]
    rig.cluster.put(service_manifest("other", engine=LARGER))
    await rig.settle()
    assert rig.condition(Key("default", "other")).reason == "DoesNotFit"
    assert fetches(rig) == [], "both are refused"


@pytest.mark.parametrize("paused", [True, False])
async def test_one_that_is_paused_or_leaves_wants_no_fetch(
    rig: Rig, chat: Key, paused: bool
) -> None:
    rig.cluster.put(service_manifest("other"))
    await fetch_then_refuse(rig, chat)
    if paused:
        rig.cluster.put(service_manifest("other", replicas=0))
    else:
        rig.cluster.remove(SERVICE_KIND, Key("default", "other"))
    await rig.wake(chat)
    assert fetches(rig) == []


async def test_a_refusal_ends_no_repair_of_what_serves(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.now += 1
    [pod] = [pod for pod in rig.cluster.all(POD) if "fetch" not in pod["metadata"]["name"]]
    ended = {"exitCode": 65, "finishedAt": timestamp(rig.cluster.now), "message": "corrupt"}
    state = {"name": "engine", "state": {"terminated": ended}, "restartCount": 0}
    rig.cluster.put(pod | {"status": {**pod["status"], "containerStatuses": [state]}})
    await rig.settle()
    rig.cluster.run_jobs()
    await rig.settle()
    [job] = fetches(rig)
    rig.cluster.plans = REFUSED
    rig.cluster.put(service_manifest(engine=LARGER))
    await rig.settle()
    assert rig.condition(chat).reason == "DoesNotFit"
    assert fetches(rig) == [job]


async def test_a_plan_of_another_commit_than_the_claims_is_no_answer(rig: Rig, chat: Key) -> None:
    rig.cluster.plans = {**PLAN_REPORT, "commit": "old"}
    rig.cluster.put(service_manifest("other"))
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    rig.cluster.plans = {**PLAN_REPORT, "commit": "new"}
    rig.cluster.put(service_manifest())
    await rig.settle()
    assert planned(rig, chat).commit == "new"
    rig.cluster.plans = {"plan": {"weightBytes": 5}}
    rig.cluster.run_jobs({"commit": "old", "bytesTotal": 1000})
    await rig.settle()
    assert planned(rig, chat).commit == "old"
    assert planned(rig, chat).weight_bytes == 5


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


# ---- upgrades -----------------------------------------------------------------------------------


async def forget_plan(rig: Rig, key: Key, plan: Manifest | None = None) -> None:
    """As the operator before plans left it."""
    for deployment in rig.cluster.all(DEPLOYMENT):
        name = deployment["metadata"]["name"]
        asked = {"metadata": {"annotations": {names.ANNOTATION_PLAN: None}}}
        await rig.cluster.patch(DEPLOYMENT, key.namespace, name, asked, "test")
    service = rig.cluster.all(SERVICE_KIND)[0]
    service["status"].pop("plan")
    if plan:
        service["status"]["plan"] = plan
    rig.cluster.set_status(SERVICE_KIND, key, service["status"])


@pytest.mark.parametrize("plan", [None, {"weightBytes": 800}])
async def test_an_upgrade_plans_nothing_for_what_serves(
    rig: Rig, chat: Key, plan: Manifest | None
) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.plans = None
    await forget_plan(rig, chat, plan)
    [before] = rig.cluster.all(DEPLOYMENT)
    await rig.settle()
    assert jobs(rig) == []
    fits = rig.condition(chat, "Fits")
    assert (fits.status, fits.reason) == ("Unknown", "NotPlanned")
    assert rig.cluster.all(DEPLOYMENT)[0]["metadata"] == before["metadata"]
    rig.cluster.put(service_manifest(replicas=2))
    await rig.settle()
    assert jobs(rig) == []
    assert rig.cluster.all(DEPLOYMENT)[0]["spec"]["replicas"] == 2
    assert await rig.wake(chat) == []


async def test_a_new_operator_with_another_image_asks_nothing_of_what_was_planned(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.plans = None
    successor = Rig(image="engine:v2", cluster=rig.cluster)
    for kind in (SERVICE_KIND, *CHILDREN):
        for body in rig.cluster.all(kind):
            successor._feed(kind, "MODIFIED", body)
    assert await successor.wake(chat) == []
    assert jobs(successor) == []


async def test_a_lost_status_is_planned_anew_for_what_does_not_serve(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    assert rig.cluster.all(DEPLOYMENT) == []
    rig.cluster.set_status(SERVICE_KIND, chat, {})
    await rig.settle()
    assert planned(rig, chat).bytes_total == 1000


async def test_nodes_that_come_and_go_ask_nothing_of_what_serves(rig: Rig, chat: Key) -> None:
    rig.cluster.put(node_manifest("small", {LABEL: "16384"}))
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.plans = None
    rig.cluster.put(node_manifest("large", {LABEL: "81559"}))
    rig.cluster.now += 100
    assert await rig.wake(chat) == []
    assert rig.condition(chat, "Fits").status == "True"


async def test_a_services_gpu_memory_moves_no_running_revision(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    [before] = rig.cluster.all(DEPLOYMENT)
    rig.cluster.plans = REFUSED
    rig.cluster.put(service_manifest(resources={"gpuMemory": "16Gi"}))
    await rig.bring_up(chat)
    assert [d["metadata"]["name"] for d in rig.cluster.all(DEPLOYMENT)] == [
        before["metadata"]["name"]
    ]
    assert rig.condition(chat).status == "True"
    assert rig.condition(chat, "Fits").reason == "DoesNotFit", "it may be told all the same"
    assert await rig.wake(chat) == []
