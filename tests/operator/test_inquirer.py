"""What is asked about services in trouble is asked beside the reconciles, and holds up nobody."""

import asyncio
from dataclasses import replace

import pytest

from quire_operator import inquirer, names
from quire_operator.inquirer import AGAIN_SECONDS
from quire_operator.kinds import DEPLOYMENT, POD, SERVICE_KIND
from quire_operator.names import Key
from quire_operator.observe import EngineAnswer
from quire_operator.queue import WorkQueue
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_answers import FakeEngines
from quire_operator.testing_endpoints import event_on
from quire_operator.testing_time import now, run

WORKERS = 8
SILENCE = EngineAnswer("NoAnswer", "/ready gives no answer within 1.5 s")


class SilentEngines(FakeEngines):
    """Each keeps who asks waiting for as long as `engines.TIMEOUT_SECONDS` is."""

    def __init__(self) -> None:
        super().__init__()
        self.asking, self.most = 0, 0

    async def ready(self, uid: str, ip: str) -> EngineAnswer:
        self.asking += 1
        self.most = max(self.most, self.asking)
        await asyncio.sleep(1.5)
        self.asking -= 1
        return SILENCE


async def hang(rig: Rig, *services: str) -> None:
    """Services whose one pod runs, was ready once, and is not any more; one "healthy" stays so."""
    for name in services:
        rig.cluster.put(service_manifest(name))
    await rig.settle(1000)
    for _ in range(2):
        rig.cluster.bind_claims()
        rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 1000})
        await rig.settle(1000)
        rig.cluster.run_deployments()
    for pod in rig.cluster.all(POD):
        if pod["metadata"]["labels"].get(names.LABEL_SERVICE) in {*services} - {"healthy"}:
            pod["spec"]["nodeName"] = "node-1"
            pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
            pod["status"]["containerStatuses"][0] |= {"started": True}
            rig.cluster.put(pod)


def living(rig: Rig) -> list["asyncio.Task[None]"]:
    """The control plane's own tasks, as `main.py` starts them, over the rig's parts."""
    queue = WorkQueue()
    rig.world._wake = rig.inquirer._wake = queue.add
    for key in rig.world.keys():  # noqa: SIM118 - not a mapping
        queue.add(key)
    workers = [queue.work(rig.reconciler) for _ in range(WORKERS)]
    return [asyncio.ensure_future(task) for task in (rig.inquirer.run(), *workers)]


async def end(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def seconds_until_applied(rig: Rig, edit: int) -> float:
    """From an edit of the healthy service's replicas until its Deployment has them."""
    began = now()
    rig.cluster.put(service_manifest("healthy", replicas=edit))
    while now() - began < 60:
        for deployment in rig.cluster.all(DEPLOYMENT):
            ours = deployment["metadata"]["name"].startswith("healthy-")
            if ours and deployment["spec"]["replicas"] == edit:
                return now() - began
        await asyncio.sleep(0.01)
    raise AssertionError("an edit was not applied within 60 s")


@pytest.mark.parametrize("num_silent", [0, 30])
def test_an_edit_is_applied_as_soon_whatever_number_of_engines_is_silent(
    num_silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by the workers, 30 of them would keep the edit waiting for 4.5 s."""
    monkeypatch.setattr(inquirer, "AT_ONCE", 12)

    async def scenario() -> None:
        rig, engines = Rig(), SilentEngines()
        await hang(rig, "healthy", *(f"silent-{n}" for n in range(num_silent)))
        await rig.settle(1000)
        rig.inquirer._sources = replace(rig.inquirer._sources, engines=engines)
        rig.cluster.now += 10
        tasks = living(rig)
        await asyncio.sleep(0.5)  # all workers are at it
        assert await seconds_until_applied(rig, 2) < 0.1
        await asyncio.sleep(3 * 1.5)
        assert engines.most == min(num_silent, 12)
        silent = [key for key in rig.world.keys() if "silent" in key.name]  # noqa: SIM118
        assert {rig.condition(key).reason for key in silent} <= {"EngineHung"}
        await end(tasks)

    run(scenario)


async def test_news_wake_the_service_and_nothing_new_does_not(rig: Rig, chat: Key) -> None:
    await hang(rig, "chat")
    await rig.settle()
    assert rig.condition(chat).reason == "Starting"
    rig.engines.answers["203.0.113.1"] = EngineAnswer("Stalled", "no layer has run for 7 s")
    rig.cluster.now += 5
    await rig.wake(chat)
    assert rig.condition(chat).reason == "EngineHung"
    rig.cluster.now += 5
    assert await rig.wake(chat) == []


async def test_a_new_operator_tells_nothing_before_it_has_asked(rig: Rig, chat: Key) -> None:
    """A turn of Ready is posted as an Event: what was told before is not to be told twice."""
    await hang(rig, "chat")
    pod = rig.cluster.all(POD)[0]
    pod["status"]["containerStatuses"] = []
    rig.cluster.put(pod)
    rig.cluster.put(event_on(pod, "FailedMount", "no such volume", rig.cluster.now))
    rig.cluster.now += 10
    await rig.wake(chat)
    assert rig.condition(chat).reason == "MountFailed"
    rig.inquirer._told.clear()  # as after a restart
    assert await rig.wake(chat) == []


async def test_an_edit_of_a_service_in_trouble_is_observed_before_the_answers_come(
    rig: Rig, chat: Key
) -> None:
    await hang(rig, "chat")
    await rig.settle()
    rig.inquirer._told.clear()
    rig.cluster.put(service_manifest(replicas=2))
    await rig.reconciler(chat)
    service = rig.world.service(chat)
    assert service is not None
    assert service.status.observed_generation == service.generation == 2


class Restless(FakeEngines):
    """Says something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def ready(self, uid: str, ip: str) -> EngineAnswer:
        self.asked += 1
        return EngineAnswer("Loading", f"layer {self.asked}")


async def test_answers_that_change_each_time_are_asked_for_no_oftener(rig: Rig, chat: Key) -> None:
    engines = Restless()
    rig.inquirer._sources = replace(rig.inquirer._sources, engines=engines)
    await hang(rig, "chat")
    await rig.settle()
    assert engines.asked == 1
    rig.cluster.now += AGAIN_SECONDS
    await rig.wake(chat)
    assert engines.asked == 2


async def test_nothing_is_kept_of_a_service_that_went_or_is_well(rig: Rig, chat: Key) -> None:
    await hang(rig, "chat")
    await rig.settle()
    assert rig.inquirer._told
    rig.cluster.run_deployments()
    await rig.settle()
    assert not rig.inquirer._told
    await hang(rig, "chat")
    await rig.settle()
    assert rig.inquirer._told
    rig.cluster.remove(SERVICE_KIND, chat)
    await rig.settle()
    assert not rig.inquirer._told


async def test_a_source_that_fails_keeps_no_status_back(
    rig: Rig, chat: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hang(rig, "chat")

    async def broken(*_: object) -> EngineAnswer:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(rig.engines, "ready", broken)
    await rig.settle()
    assert rig.condition(chat).reason == "Starting"
