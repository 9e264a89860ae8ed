"""The table of troubles: what each state of the world is called, and in which words."""

import pytest

from quire_operator import conditions
from quire_operator.case import MAX_MESSAGE, Problem, pair
from quire_operator.kinds import CLAIM, DEPLOYMENT, JOB, POD, Manifest
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_cases import CHAT, EXIT, LOOP, case, engine_pod, ready, spoil, up


async def test_a_crash_is_worse_than_waiting(rig: Rig) -> None:
    await up(rig, replicas=3)
    pods = [p for p in rig.cluster.all(POD) if "fetch" not in p["metadata"]["name"]]
    for pod, state in zip(pods, ({"running": {}}, LOOP, {"running": {}}), strict=True):
        pod["status"] = {
            "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [
                {
                    "name": "engine",
                    "state": state,
                    "lastState": {"terminated": EXIT} if state is LOOP else {},
                }
            ],
        }
        rig.cluster.put(pod)
    assert ready(case(rig))[1] == "CrashLoop"


async def test_one_of_two_serves_and_the_others_trouble_is_told(rig: Rig) -> None:
    await up(rig, replicas=2)
    spoil(rig, LOOP, {"terminated": EXIT})
    status, reason, message = ready(case(rig))
    assert (status, reason) == ("True", "CrashLoop")
    assert message.startswith("1 of 2 replicas ready; the engine exited with 1")
    pods_ready = conditions.conditions(case(rig))[3]
    assert (pods_ready.type, pods_ready.status) == ("PodsReady", "False")


async def test_one_of_two_serves_while_the_other_starts(rig: Rig) -> None:
    await up(rig, replicas=2)
    spoil(rig, {"running": {}})
    assert ready(case(rig))[:2] == ("True", "Ready")


async def test_problems_of_applying_come_first(rig: Rig) -> None:
    await up(rig)
    spoil(rig, LOOP, {"terminated": EXIT})
    found = ready(case(rig, Problem("NameConflict", "Service chat is not ours")))
    assert found == ("False", "NameConflict", "Service chat is not ours")


async def test_pods_that_a_quota_refuses(rig: Rig) -> None:
    await up(rig)
    at = Key("default", rig.cluster.all(DEPLOYMENT)[0]["metadata"]["name"])
    words = 'pods "x" is forbidden: exceeded quota: gpus'
    failure = {"type": "ReplicaFailure", "status": "True", "message": words}
    rig.cluster.set_status(DEPLOYMENT, at, {"conditions": [failure]})
    rig.cluster.remove(POD, Key("default", engine_pod(rig)["metadata"]["name"]))
    assert ready(case(rig)) == ("False", "QuotaExceeded", words)


async def test_refused_pods_are_tried_again_every_ten_seconds(rig: Rig) -> None:
    """Left alone, the ReplicaSet's controller waits up to 16 minutes between its tries."""
    await up(rig)
    at = Key("default", rig.cluster.all(DEPLOYMENT)[0]["metadata"]["name"])
    rig.cluster.remove(POD, Key("default", engine_pod(rig)["metadata"]["name"]))
    rig.cluster.now += 100
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    rig.cluster.set_status(DEPLOYMENT, at, {"conditions": [failure]})
    nudge = [f"PATCH Deployment/{at.name}"]
    assert [w for w in await rig.wake(CHAT) if "Deployment" in w] == nudge
    assert rig.again[CHAT] == pytest.approx(10.0)
    assert await rig.wake(CHAT) == [], "not before its time"
    rig.cluster.now += 10
    assert await rig.wake(CHAT) == nudge
    rig.cluster.set_status(DEPLOYMENT, at, {"conditions": []})
    rig.cluster.run_deployments()
    await rig.settle()
    assert ready(case(rig))[1] == "Ready"
    assert rig.again[CHAT] is None


async def test_a_claim_that_is_not_bound_says_why(rig: Rig) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    words = 'storageclass.storage.k8s.io "nope" not found'
    status, reason, message = ready(case(rig, claim_event=words))
    assert (status, reason) == ("False", "ClaimUnbound")
    assert message.endswith(words)


async def test_a_claim_that_waits_for_its_first_consumer_is_no_trouble(rig: Rig) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    assert ready(case(rig))[1] == "Fetching"


async def test_a_lost_claim(rig: Rig) -> None:
    await up(rig)
    at = Key("default", rig.cluster.all(CLAIM)[0]["metadata"]["name"])
    rig.cluster.set_status(CLAIM, at, {"phase": "Lost"})
    spoil(rig, {"waiting": {"reason": "ContainerCreating"}})
    assert ready(case(rig))[1] == "ClaimUnbound"


async def test_a_fetch_that_gets_no_pod(rig: Rig) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    words = 'pods "x" is forbidden: exceeded quota: pods'
    assert ready(case(rig, job_event=words))[1:] == (
        "QuotaExceeded",
        f"the fetch gets no pod: {words}",
    )


async def test_a_fetch_killed_without_a_word(rig: Rig) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    job = rig.cluster.all(JOB)[0]
    failed = {"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}
    rig.cluster.set_status(JOB, Key("default", job["metadata"]["name"]), {"conditions": [failed]})
    await rig.settle()
    found = ready(case(rig))
    assert found[1] == "Interrupted"
    assert "BackoffLimitExceeded" in found[2]


@pytest.mark.parametrize(
    ("end", "reason", "words"),
    [
        ({"exitCode": 137, "reason": "Error"}, "Interrupted", "was killed: nobody says why"),
        (
            {"exitCode": 143, "reason": "Error", "message": "interrupted; the next run goes on"},
            "Interrupted",
            "was told to end: nobody says why",
        ),
        ({"exitCode": 137, "reason": "OOMKilled"}, "OOMKilled", "at its memory limit (512Mi)"),
        ({"exitCode": 1, "message": "Traceback\nboom"}, "FetchFailed", "exited with 1: boom"),
    ],
)
async def test_a_fetch_that_somebody_ended(
    rig: Rig, end: Manifest, reason: str, words: str
) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    [job] = rig.cluster.all(JOB)
    rig.cluster.end_job(job, {"reason": "anything"})
    [pod] = rig.cluster.all(POD)
    ended = [{"name": "fetch", "state": {"terminated": end}}]
    pod["status"] |= {"containerStatuses": ended, "phase": "Failed"}
    rig.cluster.put(pod)
    await rig.settle()
    found = ready(case(rig))
    assert found[1] == reason
    assert words in found[2]


async def test_an_empty_dir_is_filled_by_an_init_container(rig: Rig) -> None:
    rig.cluster.put(service_manifest(cache={"mode": "none"}))
    await rig.settle()
    rig.cluster.run_deployments(ready=False)
    pod = engine_pod(rig)
    pod["status"] = {"initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}]}
    rig.cluster.put(pod)
    assert ready(case(rig))[1] == "Fetching"
    ended = {"exitCode": 10, "message": '{"reason":"SourceNotFound","message":"no such repo"}'}
    pod["status"]["initContainerStatuses"][0] = {
        "name": "fetch",
        "state": LOOP,
        "lastState": {"terminated": ended},
        "restartCount": 2,
    }
    rig.cluster.put(pod)
    assert ready(case(rig))[1] == "SourceNotFound"


async def test_a_revision_that_never_gets_ready_passes_its_deadline(rig: Rig) -> None:
    await up(rig, rollout={"progressDeadlineSeconds": 60})
    spoil(rig, {"running": {}})
    at = Key("default", rig.cluster.all(DEPLOYMENT)[0]["metadata"]["name"])
    rig.cluster.set_status(DEPLOYMENT, at, {"observedGeneration": 9, "readyReplicas": 0})

    def rollout() -> str:
        found = {c.type: c for c in conditions.conditions(case(rig))}
        return found["RolloutComplete"].reason

    rig.cluster.now += 59
    assert rollout() == "Progressing"
    rig.cluster.now += 1
    assert rollout() == "ProgressDeadlineExceeded"


async def test_a_rollout_of_no_replicas_is_complete(rig: Rig) -> None:
    rig.cluster.put(service_manifest(replicas=0))
    await rig.settle()
    rollout = rig.condition(CHAT, "RolloutComplete")
    assert (rollout.status, rollout.reason) == ("True", "Complete")


async def test_long_messages_are_cut(rig: Rig) -> None:
    await up(rig)
    found = ready(case(rig, Problem("Refused", "x" * 5000)))
    assert len(found[2]) == MAX_MESSAGE


@pytest.mark.parametrize(
    ("done", "total", "words"),
    [
        (1_200_000_000, 16_100_000_000, ("1.2", "16.1 GB")),
        (5_000_000, 272_600_000, ("5.0", "272.6 MB")),
        (0, 999, ("0", "999 bytes")),
    ],
)
def test_bytes_in_words(done: int, total: int, words: tuple[str, str]) -> None:
    assert pair(done, total) == words
