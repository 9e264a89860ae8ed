"""LoRA adapters from the spec to the engine's flags, over an API server that behaves."""

from typing import Any

import pytest

from quire_operator import names
from quire_operator.kinds import CLAIM, DEPLOYMENT, JOB, POD
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.values import timestamp

SUPPORT = {"name": "support", "uri": "hf://org/support"}
SALES = {"name": "sales", "uri": "hf://org/sales", "revision": "v1"}
SUPPORT_FOLDER = f"adapters/{names.claim_hash('hf://org/support', None)}"
SALES_FOLDER = f"adapters/{names.claim_hash('hf://org/sales', 'v1')}"
OTHER = Key("default", "other")


def with_adapters(*adapters: dict[str, str], name: str = "chat", **spec: Any) -> dict[str, Any]:
    model = {"uri": "hf://org/model", "adapters": list(adapters)}
    return service_manifest(name, model=model, **spec)


def values(arguments: list[str], flag: str) -> list[str]:
    return [arguments[at + 1] for at, word in enumerate(arguments) if word == flag]


def jobs(rig: Rig, kind: str) -> list[list[str]]:
    """Command lines of the Jobs that there are, of `fetch` or `plan`."""
    containers = [job["spec"]["template"]["spec"]["containers"][0] for job in rig.cluster.all(JOB)]
    return [container["args"] for container in containers if container["args"][0] == kind]


async def until_fetch(rig: Rig, commit: str = "c0ffee") -> list[str]:
    """Lets the plan Job answer; the command line of the fetch that follows."""
    assert rig.cluster.plans is not None
    rig.cluster.plans |= {"commit": commit}
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    [fetch] = jobs(rig, "fetch")
    return fetch


async def test_adapters_are_planned_fetched_and_served(rig: Rig, chat: Key) -> None:
    answers, rig.cluster.plans = rig.cluster.plans, None
    rig.cluster.put(with_adapters(SUPPORT, SALES))
    await rig.settle()
    [plan] = jobs(rig, "plan")
    sources = ["support=hf://org/support", "sales=hf://org/sales#v1"]
    assert values(plan[plan.index("--") :], "--lora-modules") == sources
    assert answers is not None
    rig.cluster.run_jobs(answers)
    rig.cluster.plans = answers
    fetch = await until_fetch(rig)
    assert sorted(values(fetch, "--adapter")) == sorted(
        [f"{SUPPORT_FOLDER}=hf://org/support", f"{SALES_FOLDER}=hf://org/sales#v1"]
    )
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"
    [deployment] = rig.cluster.all(DEPLOYMENT)
    served = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert values(served, "--lora-modules") == [
        f"support=/models/{SUPPORT_FOLDER}/model",
        f"sales=/models/{SALES_FOLDER}/model",
    ]
    assert rig.cluster.all(JOB) == []
    assert await rig.wake(chat) == [], "an unchanged world gets no write"


async def test_who_wants_the_model_alone_finds_it_on_the_claim(rig: Rig, chat: Key) -> None:
    rig.cluster.put(with_adapters(SUPPORT))
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest("other"))
    await rig.settle()
    assert jobs(rig, "fetch") == []
    await rig.bring_up(OTHER)
    assert rig.condition(OTHER).reason == "Ready"
    assert len(rig.cluster.all(CLAIM)) == 1


async def test_more_adapters_stay_with_the_model_that_is_there(rig: Rig, chat: Key) -> None:
    """Whatever commit the branch has now: others serve from these files."""
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.put(with_adapters(SALES, name="other"))
    fetch = await until_fetch(rig, commit="newer")
    assert values(fetch, "--revision") == ["c0ffee"]
    await rig.bring_up(OTHER)
    assert rig.condition(OTHER).reason == "Ready"
    assert len(rig.cluster.all(CLAIM)) == 1
    assert await rig.wake(OTHER) == []
    assert await rig.wake(chat) == []


async def test_an_adapter_added_later_is_fetched_beside_what_serves(rig: Rig, chat: Key) -> None:
    rig.cluster.put(with_adapters(SUPPORT))
    await rig.bring_up(chat)
    [before] = rig.cluster.all(DEPLOYMENT)
    rig.cluster.put(with_adapters(SUPPORT, SALES))
    fetch = await until_fetch(rig)
    assert len(values(fetch, "--adapter")) == 2
    assert rig.cluster.all(DEPLOYMENT) == [before], "the earlier revision serves meanwhile"
    await rig.bring_up(chat)
    [after] = rig.cluster.all(DEPLOYMENT)
    assert after["metadata"]["name"] != before["metadata"]["name"]


async def test_a_bad_adapter_is_told_in_ready(rig: Rig, chat: Key) -> None:
    rig.cluster.put(with_adapters(SUPPORT))
    await until_fetch(rig)
    words = "adapter hf://org/support: hf://org/support was not found"
    rig.cluster.run_jobs({"reason": "SourceNotFound", "message": words})
    await rig.settle()
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("False", "SourceNotFound")
    assert ready.message.startswith(words)


@pytest.mark.parametrize("code", [65, 66])
async def test_a_repair_is_told_all_adapters(rig: Rig, chat: Key, code: int) -> None:
    rig.cluster.put(with_adapters(SUPPORT))
    await rig.bring_up(chat)
    rig.cluster.now += 100
    crash(rig, code)
    await rig.settle()
    [repair] = jobs(rig, "fetch")
    assert "--repair" in repair
    assert "--keep" not in repair
    assert values(repair, "--adapter") == [f"{SUPPORT_FOLDER}=hf://org/support"]
    assert values(repair, "--revision") == ["c0ffee"]


def crash(rig: Rig, code: int) -> None:
    """The engine's container ends so, and is to start again."""
    [pod] = [p for p in rig.cluster.all(POD) if p["metadata"]["name"].startswith("chat-")]
    ended = {"exitCode": code, "message": "bad file", "finishedAt": timestamp(rig.cluster.now)}
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    status = {"name": "engine", "state": state, "lastState": {"terminated": ended}}
    pod["status"] |= {"containerStatuses": [status], "conditions": []}
    rig.cluster.put(pod)


async def test_more_adapters_leave_what_is_there_of_a_bucket(rig: Rig, chat: Key) -> None:
    """It keeps no earlier commit to be pinned to, and others serve from these files."""
    uri = "s3://bucket/model"
    rig.cluster.put(service_manifest(model={"uri": uri}))
    assert "--keep" not in await until_fetch(rig)
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest("other", model={"uri": uri, "adapters": [SALES]}))
    fetch = await until_fetch(rig, commit="newer")
    assert "--keep" in fetch
    assert "--repair" not in fetch
    await rig.bring_up(OTHER)
    assert rig.condition(OTHER).reason == "Ready"
    assert await rig.wake(OTHER) == []


async def test_the_models_failure_is_over_once_it_came_with_adapters(rig: Rig, chat: Key) -> None:
    def failed() -> bool:
        [claim] = rig.cluster.all(CLAIM)
        content = names.claim_hash("hf://org/model", None)
        return names.failed_annotation(content) in claim["metadata"]["annotations"]

    rig.cluster.put(service_manifest())
    await until_fetch(rig)
    for _ in range(2):
        rig.cluster.run_jobs({"reason": "SourceUnreachable", "message": "no answer"})
        await rig.settle()
        rig.cluster.now += 3
        await rig.wake(chat)
    assert failed()
    rig.cluster.put(with_adapters(SUPPORT, name="other"))
    await rig.bring_up(OTHER)
    assert not failed()
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"
    assert not failed(), "the Job that failed before tells nothing new"
    assert await rig.wake(chat) == []
