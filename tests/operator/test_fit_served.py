"""A memory plan of what is fetched or serves already: later questions, late refusals, upgrades."""

import pytest

from quire_operator import names
from quire_operator.kinds import (
    CHILDREN,
    CLAIM,
    DEPLOYMENT,
    POD,
    SERVICE_KIND,
    Manifest,
)
from quire_operator.names import Key
from quire_operator.testing import Rig, node_manifest, service_manifest
from quire_operator.testing_plans import LABEL, REFUSED, arguments, jobs, planned
from quire_operator.testing_pods import PLAN_REPORT
from quire_operator.values import timestamp


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
