"""A fetch that is killed: as long as it advances the next one starts at once."""

from quire_operator import fetch
from quire_operator.api import ModelStatus
from quire_operator.kinds import JOB, POD
from quire_operator.names import Key
from quire_operator.observe import Progress
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_pods import PLAN_REPORT
from quire_operator.values import timestamp


def far(rig: Rig, num_bytes: int, total: int = 1000) -> None:
    """The fetch's pod says that so many bytes are there."""
    for pod in rig.cluster.all(POD):
        if pod["metadata"]["name"].endswith("-pod"):
            rig.cluster.put(pod | {"status": {**pod["status"], "podIP": "203.0.113.9"}})
    rig.progress.answers["203.0.113.9"] = Progress(
        phase="downloading",
        bytes_total=total,
        bytes_done=num_bytes,
        bytes_per_second=10.0,
        eta_seconds=1.0,
        commit="c0ffee",
    )


def kill(rig: Rig) -> None:
    """The kernel ends the fetch's one process; its log is all that it leaves."""
    [job] = rig.cluster.all(JOB)
    name = job["metadata"]["name"]
    at = timestamp(rig.cluster.now)
    ended = {"exitCode": 137, "reason": "Error", "message": "INFO 1 of 2 GB", "finishedAt": at}
    [pod] = [p for p in rig.cluster.all(POD) if p["metadata"]["name"] == f"{name}-pod"]
    state = {"name": "fetch", "state": {"terminated": ended}}
    rig.cluster.put(pod | {"status": {"phase": "Failed", "containerStatuses": [state]}})
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": at, "message": "backoff"}
    rig.cluster.set_status(JOB, Key("default", name), {"conditions": [failed]})


def attempt(rig: Rig) -> int:
    [job] = rig.cluster.all(JOB)
    return int(job["metadata"]["name"].rpartition("-")[2])


async def begin(rig: Rig) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()


async def test_a_fetch_that_is_killed_goes_on_at_once_as_long_as_it_advances(
    rig: Rig, chat: Key
) -> None:
    await begin(rig)
    for number in range(1, 101):
        assert attempt(rig) == number
        rig.cluster.run_jobs()
        far(rig, 10 * number)
        await rig.wake(chat)
        kill(rig)
        await rig.settle()
        ready = rig.condition(chat)
        assert (ready.status, ready.reason) == ("False", "Interrupted")
        assert ready.message.startswith("the fetch was killed: nobody says why (")
        assert f"{number} attempt" in ready.message
        rig.progress.answers.clear()
    assert attempt(rig) == 101, "not a second has passed"


async def test_one_that_stands_still_waits_as_before(rig: Rig, chat: Key) -> None:
    await begin(rig)
    waits = []
    for number in range(1, 6):
        rig.cluster.run_jobs()
        far(rig, 500)
        await rig.wake(chat)
        kill(rig)
        await rig.settle()
        rig.progress.answers.clear()
        if attempt(rig) == number:
            wait = rig.again[chat]
            assert wait is not None
            waits.append(round(wait))
            rig.cluster.now += wait
            await rig.wake(chat)
    assert attempt(rig) == 6
    assert waits == [2, 5, 10, 10], "the first one brought 500 bytes, the others none"


async def test_a_fetch_that_brings_wrong_bytes_over_and_over_is_not_hurried(
    rig: Rig, chat: Key
) -> None:
    await begin(rig)
    rig.cluster.run_jobs()
    for number in range(1, 4):
        far(rig, 1000)
        await rig.wake(chat)
        rig.cluster.run_jobs({"reason": "Corrupt", "message": "sha256 differs"})
        await rig.settle()
        rig.progress.answers.clear()
        assert attempt(rig) == (2 if number == 1 else number)
        if number > 1:
            assert rig.again[chat] == fetch.retry_seconds(number - 1)
            rig.cluster.now += 10
            await rig.wake(chat)
        rig.cluster.run_jobs()


async def test_what_a_service_that_moves_to_another_model_fetched_is_not_told_of_that(
    rig: Rig, chat: Key
) -> None:
    await begin(rig)
    rig.cluster.run_jobs()
    far(rig, 500)
    await rig.wake(chat)
    moved = service_manifest(model={"uri": "hf://org/larger"})
    rig.cluster.put(service_manifest("other", model={"uri": "hf://org/larger"}))
    rig.progress.answers.clear()
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    rig.cluster.plans = None
    rig.cluster.put(moved)
    await rig.settle()
    assert rig.condition(chat, "Fits").reason == "Planning"
    assert rig.status(chat).model == ModelStatus(), "nothing of the model before"
    [plan] = [job for job in rig.cluster.all(JOB) if "-plan-" in job["metadata"]["name"]]
    rig.cluster.end_job(plan, {**PLAN_REPORT, "commit": "beef", "bytesTotal": 9000})
    await rig.settle()
    model = rig.status(chat).model
    assert model is not None
    assert (model.commit, model.bytes_total, model.bytes_done) == ("beef", 9000, None)


async def test_bytes_are_told_on_between_two_attempts(rig: Rig, chat: Key) -> None:
    await begin(rig)
    rig.cluster.run_jobs()
    far(rig, 500)
    await rig.wake(chat)
    rig.progress.answers.clear()
    kill(rig)
    await rig.settle()
    rig.cluster.put(service_manifest(replicas=2))
    await rig.settle()
    model = rig.status(chat).model
    assert model is not None
    assert (model.commit, model.bytes_done) == ("c0ffee", 500)
