"""What is asked for about services in trouble: enough, bounded, and never a reason to fail."""

from dataclasses import replace

import pytest

from quire_operator import inquiry
from quire_operator.errors import Denied
from quire_operator.kinds import CLAIM, EVENT, POD, Kind, Manifest
from quire_operator.names import Key
from quire_operator.observe import MAX_UNCLEAR, EngineAnswer, Progress, observe
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_endpoints import event_on

IP = "203.0.113.9"


def pods_of_nodes(rig: Rig) -> None:
    """All pods have a node, and none is ready."""
    for pod in rig.cluster.all(POD):
        pod["spec"]["nodeName"] = "node-1"
        pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        rig.cluster.put(pod)


async def test_of_many_pods_three_are_asked_about(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(replicas=9))
    await rig.bring_up(chat)
    pods_of_nodes(rig)
    rig.cluster.now += 10
    service = rig.world.service(chat)
    assert service is not None
    assert service.spec is not None
    seen = observe(rig.world, chat, service, service.spec, rig.reconciler.defaults, rig.cluster.now)
    asked = inquiry.questions(seen)
    assert len(asked.events) == len(asked.engines) == MAX_UNCLEAR
    assert {*asked.events} == {pod.meta.uid for pod in asked.engines}


async def test_a_ready_service_is_asked_about_nothing(
    rig: Rig, chat: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)

    async def nobody(*_: object, **__: object) -> list[Manifest]:
        raise AssertionError("events were read of a service that is ready")

    monkeypatch.setattr(rig.cluster, "list_objects", nobody)
    rig.cluster.now += 100
    assert await rig.wake(chat) == []


async def test_events_that_may_not_be_read_leave_what_status_says(
    rig: Rig, chat: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    pods_of_nodes(rig)

    async def denied(kind: Kind, *_: object, **__: object) -> list[Manifest]:
        assert kind is EVENT
        raise Denied(403, "GET events", "may not list events")

    monkeypatch.setattr(rig.cluster, "list_objects", denied)
    rig.engines.answers["203.0.113.1"] = EngineAnswer("Loading")
    rig.cluster.now += 10
    await rig.wake(chat)
    assert rig.condition(chat).reason == "Starting"


async def test_a_provisioner_that_never_answers_is_told_after_a_while(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    claim = rig.cluster.all(CLAIM)[0]
    words = "Waiting for a volume to be created by the external provisioner 'nobody'"
    rig.cluster.put(event_on(claim, "ExternalProvisioning", words, rig.cluster.now, kind="Normal"))
    rig.cluster.now += 5
    await rig.wake(chat)
    assert rig.condition(chat).reason == "Fetching"
    rig.cluster.now += 6
    await rig.wake(chat)
    told = rig.condition(chat)
    assert told.reason == "ClaimUnbound"
    assert told.message.endswith(words)


async def second_attempt(rig: Rig, chat: Key) -> Manifest:
    """The running pod of the attempt after one that stalled."""
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"reason": "Stalled", "message": "no byte for 60 s"})
    await rig.settle()
    rig.cluster.now += 2.5
    await rig.wake(chat)
    rig.cluster.run_jobs()
    await rig.settle()
    assert rig.condition(chat).reason == "Stalled", "until the next attempt gets further"
    pods = [pod for pod in rig.cluster.all(POD) if "fetch-2" in pod["metadata"]["name"]]
    return pods[0]


async def test_a_failure_is_over_once_the_next_attempts_bytes_come(rig: Rig, chat: Key) -> None:
    pod = await second_attempt(rig, chat)
    pod["status"]["podIP"] = IP
    rig.cluster.put(pod)
    rig.progress.answers[IP] = Progress(
        phase="downloading",
        bytes_total=100,
        bytes_done=50,
        bytes_per_second=10.0,
        eta_seconds=5.0,
        commit="c0ffee",
    )
    await rig.wake(chat)
    assert rig.condition(chat).reason == "Fetching"


async def test_trouble_is_told_while_the_fetch_still_tries(rig: Rig, chat: Key) -> None:
    """By the reason that the fetch would end with; Fetching again once bytes come."""
    pod = await second_attempt(rig, chat)
    pod["status"]["podIP"] = IP
    rig.cluster.put(pod)
    troubled = Progress(
        phase="downloading",
        bytes_total=100,
        bytes_done=50,
        bytes_per_second=1.0,  # of the last ten seconds
        eta_seconds=None,
        commit="c0ffee",
        note="model.safetensors must be served, got HTTP 503 again and again",
        reason="SourceUnreachable",
    )
    rig.progress.answers[IP] = troubled
    await rig.wake(chat)
    told = rig.condition(chat)
    assert told.reason == "SourceUnreachable"
    assert "HTTP 503" in told.message
    assert "goes on trying" in told.message
    rig.progress.answers[IP] = replace(troubled, note="", reason="")
    rig.cluster.now += 5
    await rig.wake(chat)
    assert rig.condition(chat).reason == "Fetching"


async def test_a_failure_gives_way_to_what_holds_up_the_next_attempt(rig: Rig, chat: Key) -> None:
    pod = await second_attempt(rig, chat)
    state = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}
    pod["status"]["containerStatuses"] = [{"name": "fetch", "state": state}]
    rig.cluster.put(pod)
    await rig.settle()
    told = rig.condition(chat)
    assert (told.reason, told.message) == ("PodConfig", 'secret "x" not found')
