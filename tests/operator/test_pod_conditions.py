"""What the state of a service's pods is called, by what the cluster and the engines say."""

import pytest

from quire_operator import inquiry
from quire_operator.case import Case
from quire_operator.event_reader import EventReader
from quire_operator.inquirer import Sources
from quire_operator.kinds import Manifest
from quire_operator.observe import EngineAnswer
from quire_operator.plan import plan
from quire_operator.testing import Rig
from quire_operator.testing_cases import CHAT, EXIT, LOOP, case, engine_pod, look, ready, spoil, up
from quire_operator.testing_endpoints import event_on
from quire_operator.values import timestamp

TABLE = [
    (LOOP, EXIT, "CrashLoop", "the engine exited with 1: config.json has no hidden_size"),
    ({"terminated": EXIT}, None, "CrashLoop", "config.json has no hidden_size (restarted 3 times)"),
    ({"running": {}}, EXIT, "CrashLoop", "config.json has no hidden_size"),
    (
        LOOP,
        {"exitCode": 70, "message": '{"reason":"Core","message":"core died"}'},
        "CrashLoop",
        "core died",
    ),
    (LOOP, {"exitCode": 137, "reason": "OOMKilled"}, "OOMKilled", "memory limit of 2Gi"),
    (
        {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}},
        None,
        "ImagePull",
        "no such tag",
    ),
    ({"waiting": {"reason": "ErrImagePull", "message": "denied"}}, None, "ImagePull", "denied"),
    (
        {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}},
        None,
        "PodConfig",
        'secret "s" not found',
    ),
    ({"running": {}}, None, "Starting", "0 of 1 replicas ready, 1 loading the model"),
    (
        {"waiting": {"reason": "ContainerCreating"}},
        None,
        "Starting",
        "0 of 1 replicas ready, 0 load",
    ),
]


@pytest.mark.parametrize(("state", "last", "reason", "words"), TABLE)
async def test_a_pods_state(
    rig: Rig, state: Manifest, last: Manifest | None, reason: str, words: str
) -> None:
    await up(rig, resources={"gpus": 0, "memory": "2Gi"})
    spoil(rig, state, {"terminated": last} if last else None)
    status, found, message = ready(case(rig))
    assert (status, found) == ("False", reason)
    assert words in message


async def test_oom_without_a_limit_says_so(rig: Rig) -> None:
    await up(rig)
    spoil(rig, LOOP, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    assert "no limit is set" in ready(case(rig))[2]


async def test_the_schedulers_words(rig: Rig) -> None:
    await up(rig)
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pod = engine_pod(rig)
    pod["status"] = {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        ]
    }
    rig.cluster.put(pod)
    assert ready(case(rig)) == ("False", "Unschedulable", words)


async def test_an_evicted_pod(rig: Rig) -> None:
    await up(rig)
    spoil(rig, {}, phase="Failed", reason="Evicted", message="low on disk")
    assert ready(case(rig)) == ("False", "Evicted", "low on disk")


async def test_an_evicted_pod_beside_its_successor_is_history(rig: Rig) -> None:
    await up(rig)
    pod = engine_pod(rig)
    pod["metadata"] = {k: v for k, v in pod["metadata"].items() if k != "uid"} | {"name": "ghost"}
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}
    rig.cluster.put(pod | {"status": evicted})
    await rig.settle()
    assert ready(case(rig)) == ("True", "Ready", "1 of 1 replicas ready")
    assert rig.status(CHAT).replicas == 1
    spoil(rig, {"running": {}})
    assert ready(case(rig))[1] == "Starting"


async def test_an_evicted_pod_is_told_until_its_successor_is_ready(rig: Rig) -> None:
    await up(rig)
    pod = engine_pod(rig)
    pod["metadata"] = {k: v for k, v in pod["metadata"].items() if k != "uid"} | {"name": "ghost"}
    put_out = {"type": "DisruptionTarget", "status": "True"}
    put_out["lastTransitionTime"] = timestamp(rig.cluster.now)
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}
    rig.cluster.put(pod | {"status": evicted | {"conditions": [put_out]}})
    spoil(rig, {"running": {}})
    assert ready(case(rig)) == ("False", "Evicted", "low on disk")
    rig.cluster.run_deployments()
    assert ready(case(rig))[:2] == ("True", "Ready")


async def test_pods_that_the_kubelet_does_not_take_one_after_the_other(rig: Rig) -> None:
    await up(rig)
    pod = engine_pod(rig)
    pod["metadata"] = {k: v for k, v in pod["metadata"].items() if k != "uid"} | {"name": "ghost"}
    rejected = {"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected"}
    rig.cluster.put(pod | {"status": rejected | {"startTime": timestamp(rig.cluster.now)}})
    spoil(rig, {})
    assert ready(case(rig)) == ("False", "PodFailed", "OutOfcpu: Pod was rejected")


async def test_the_node_shut_down(rig: Rig) -> None:
    await up(rig)
    spoil(rig, {}, phase="Failed", reason="Terminated", message="Pod was terminated in response")
    words = "Terminated: Pod was terminated in response"
    assert ready(case(rig)) == ("False", "PodFailed", words)


MAKING = {"waiting": {"reason": "ContainerCreating"}}
MOUNT = 'MountVolume.SetUp failed for volume "x" : secret "s" not found'


def told(rig: Rig, reason: str, message: str, seconds: float = 0.0, kind: str = "Warning") -> None:
    """An event on the engine's pod, that many seconds ago."""
    at = rig.cluster.now - seconds
    rig.cluster.put(event_on(engine_pod(rig), reason, message, at, kind=kind))


async def asked(rig: Rig) -> Case:
    """The case after all have been asked."""
    seen = look(rig)
    sources = Sources(EventReader(rig.cluster), rig.progress, rig.engines)
    answers = await sources.ask(inquiry.questions(seen), seen.key.namespace, seen.now)
    seen = inquiry.hear(seen, answers)
    return Case(seen, plan(seen), ())


async def held_up(rig: Rig, state: Manifest, **container: object) -> None:
    """A service whose pod has had a node for a minute; its start-up probe has passed."""
    await up(rig)
    pod = engine_pod(rig)
    pod["spec"]["nodeName"] = "node-1"
    status = {"name": "engine", "state": state, "started": True, "restartCount": 1, **container}
    pod["status"] = {
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [status],
        "podIP": IP,
        "startTime": timestamp(rig.cluster.now),
    }
    rig.cluster.put(pod)
    rig.cluster.now += 60


IP = "203.0.113.1"
RUNNING: Manifest = {"running": {}}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("FailedMount", "MountFailed"),
        ("FailedAttachVolume", "MountFailed"),
        ("FailedCreatePodSandBox", "SandboxFailed"),
    ],
)
async def test_what_keeps_containers_from_being_made(rig: Rig, event: str, reason: str) -> None:
    await held_up(rig, MAKING)
    told(rig, event, MOUNT, 5)
    told(rig, "Scheduled", "assigned", 60, kind="Normal")
    assert ready(await asked(rig)) == ("False", reason, MOUNT)


async def test_a_mount_that_has_worked_since_is_history(rig: Rig) -> None:
    await held_up(rig, MAKING)
    told(rig, "FailedMount", MOUNT, 5)
    told(rig, "Pulling", 'Pulling image "engine:v1"', 1, kind="Normal")
    status, reason, message = ready(await asked(rig))
    assert (status, reason) == ("False", "Starting")
    assert message.endswith('Pulling image "engine:v1"')


async def test_a_lost_node_is_named(rig: Rig) -> None:
    await held_up(rig, RUNNING)
    told(rig, "NodeNotReady", "Node is not ready")
    status, reason, message = ready(await asked(rig))
    assert (status, reason) == ("False", "NodeLost")
    assert "node-1" in message


async def test_a_hung_engine_by_its_silence_and_by_its_own_word(rig: Rig) -> None:
    await held_up(rig, RUNNING)
    for answer in (EngineAnswer("NoAnswer", "no answer"), EngineAnswer("Stalled", "for 7 s")):
        rig.engines.answers[IP] = answer
        status, reason, message = ready(await asked(rig))
        assert (status, reason) == ("False", "EngineHung")
        assert answer.message in message


async def test_silence_of_an_engine_that_has_only_begun_is_no_hang(rig: Rig) -> None:
    await held_up(rig, RUNNING, started=False)
    rig.engines.answers[IP] = EngineAnswer("NoAnswer", "no answer")
    assert ready(await asked(rig))[1] == "Starting"


async def test_an_engine_that_the_kubelet_killed_for_its_silence(rig: Rig) -> None:
    end = {"exitCode": 137, "reason": "Error", "finishedAt": timestamp(rig.cluster.now + 55)}
    await held_up(rig, RUNNING, lastState={"terminated": end}, started=False)
    assert ready(await asked(rig))[1] == "CrashLoop"
    told(rig, "Killing", "Container engine failed liveness probe, will be restarted", 12)
    told(rig, "Unhealthy", "Liveness probe failed: context deadline exceeded", 13)
    told(rig, "Unhealthy", "Readiness probe failed: statuscode: 503", 1)
    status, reason, message = ready(await asked(rig))
    assert (status, reason) == ("False", "EngineHung")
    assert message.endswith("Liveness probe failed: context deadline exceeded (restarted 1 time)")


async def test_an_end_long_after_a_probes_kill_is_its_own(rig: Rig) -> None:
    now = rig.cluster.now
    end = {"exitCode": 1, "message": "no such flag", "finishedAt": timestamp(now)}
    await held_up(rig, RUNNING, lastState={"terminated": end}, started=False)
    told(rig, "Killing", "Container engine failed liveness probe, will be restarted", 1000)
    assert ready(await asked(rig))[1] == "CrashLoop"


async def test_loading_is_no_trouble(rig: Rig) -> None:
    await held_up(rig, RUNNING)
    told(rig, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
    assert ready(await asked(rig))[1] == "Starting"


async def test_an_engine_that_drains_though_nobody_deletes_its_pod(rig: Rig) -> None:
    await held_up(rig, RUNNING)
    rig.engines.answers[IP] = EngineAnswer("Draining")
    assert ready(await asked(rig))[1:] == ("NotReady", "the engine drains: it was told to end")


async def test_a_probe_that_does_not_find_what_the_engine_says(rig: Rig) -> None:
    await held_up(rig, RUNNING)
    rig.engines.answers[IP] = EngineAnswer("Ready")
    told(rig, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", 1)
    assert ready(await asked(rig))[1] == "Starting", "the kubelet has not asked again yet"
    told(rig, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")
    status, reason, message = ready(await asked(rig))
    assert (status, reason) == ("False", "NotReady")
    assert message.endswith("statuscode: 404")


async def test_a_pod_that_is_not_ready_is_asked_about_every_five_seconds(rig: Rig) -> None:
    await held_up(rig, RUNNING)
    await rig.wake(CHAT)
    assert rig.again[CHAT] == 5.0
    assert await rig.wake(CHAT) == []
    rig.cluster.run_deployments()
    await rig.settle()
    assert rig.again[CHAT] is None


async def test_a_container_that_pod_template_adds(rig: Rig) -> None:
    beside = {"name": "proxy", "image": "proxy:v1"}
    await up(rig, podTemplate={"spec": {"containers": [beside]}})
    pod = engine_pod(rig)
    ended = {"name": "proxy", "state": LOOP, "lastState": {"terminated": EXIT}, "restartCount": 3}
    pod["status"] = {
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "engine", "state": RUNNING}, ended],
    }
    rig.cluster.put(pod)
    status, reason, message = ready(case(rig))
    assert (status, reason) == ("False", "CrashLoop")
    assert message.startswith("container proxy exited with 1")
