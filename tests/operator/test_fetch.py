"""The fetch's bookkeeping: attempts, delays, repairs. The whole way: test_reconcile_cache.py."""

import pytest

from quire_operator import fetch, writer
from quire_operator.kinds import CLAIM, JOB, POD
from quire_operator.names import Key
from quire_operator.observe import Progress
from quire_operator.testing import Rig, service_manifest
from quire_operator.values import timestamp


def test_a_failure_is_tried_again_within_10_seconds_for_20_minutes() -> None:
    delays = [fetch.retry_seconds(n) for n in range(1, fetch.RETRY_PATIENT_AFTER)]
    attempt_seconds = 5  # a pod's own start, and its first question
    assert max(delays) <= 10
    assert sum(delays) + attempt_seconds * len(delays) > 1100
    assert fetch.retry_seconds(fetch.RETRY_PATIENT_AFTER) == 300


@pytest.mark.parametrize(
    ("text", "reason", "commit"),
    [
        ('{"reason": "NoSpace", "message": "full"}', "NoSpace", None),
        ('{"commit": "c0ffee", "seconds": 1.5, "more": [1]}', None, "c0ffee"),
        ("Traceback (most recent call last):", None, None),
        ("[1, 2]", None, None),
        ("", None, None),
    ],
)
def test_reports(text: str, reason: str | None, commit: str | None) -> None:
    report = fetch.report_of(text)
    assert (report.reason, report.commit) == (reason, commit)


@pytest.mark.parametrize(
    ("fetched", "words"),
    [
        ({"bytesFetched": 270_000_000, "seconds": 5.4}, "; fetched 270.0 MB in 5.4 s (50.0 MB/s)"),
        ({"bytesFetched": 0, "seconds": 5.4}, ""),
        ({}, ""),
    ],
)
async def test_a_cached_model_says_what_its_fetch_took(
    rig: Rig, chat: Key, fetched: dict[str, object], words: str
) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 272_600_000, **fetched})
    await rig.settle()
    cached = rig.condition(chat, "ModelCached")
    assert cached.reason == "Cached"
    assert cached.message.endswith(f"commit c0ffee{words}")


def test_the_last_line_of_a_log() -> None:
    assert fetch.last_line("INFO a\nquire-engine: no such file\n\n") == "no such file"
    assert fetch.last_line("") == ""


async def fail(rig: Rig, times: int) -> None:
    for _ in range(times):
        rig.cluster.run_jobs({"reason": "Stalled", "message": "no bytes for 60 s"})
        await rig.settle()
        rig.cluster.now += 400
        await rig.wake(Key("default", "chat"))


async def test_attempts_are_counted_on_and_old_jobs_go(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    await fail(rig, 4)
    jobs = [job["metadata"]["name"] for job in rig.cluster.all(JOB)]
    assert [name.rpartition("-")[2] for name in jobs] == ["5"]
    assert "4 attempts" in rig.condition(chat).message


async def test_attempts_survive_the_jobs_deletion(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    await fail(rig, 2)
    for job in rig.cluster.all(JOB):
        rig.cluster.remove(JOB, Key("default", job["metadata"]["name"]))
    await rig.settle()
    rig.cluster.now += 400
    await rig.wake(chat)
    assert [j["metadata"]["name"].rpartition("-")[2] for j in rig.cluster.all(JOB)] == ["4"]


async def test_a_job_deleted_at_half_is_not_taken_for_done(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    rig.cluster.now += writer.ON_ITS_WAY_SECONDS
    job = rig.cluster.all(JOB)[0]["metadata"]["name"]
    rig.cluster.remove(JOB, Key("default", job))
    await rig.settle()
    assert len(rig.cluster.all(JOB)) == 1, "a new attempt, which resumes"
    assert "fetched" not in str(rig.cluster.all(CLAIM))


async def test_a_success_without_a_readable_report_is_a_success(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    job = rig.cluster.all(JOB)[0]["metadata"]["name"]
    rig.cluster.remove(POD, Key("default", f"{job}-pod"))
    done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-21T10:00:00Z"}
    rig.cluster.set_status(JOB, Key("default", job), {"conditions": [done]})
    await rig.settle()
    assert rig.condition(chat, "ModelCached").reason == "Cached"


async def test_repairs_of_one_claim_wait_longer_each_time(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    starts = []
    for _ in range(3):
        crash(rig, chat)
        began = rig.cluster.now
        await rig.settle()
        while not rig.cluster.all(JOB):
            again = rig.again[chat]
            assert again is not None
            rig.cluster.now += again
            await rig.wake(chat)
        starts.append(rig.cluster.now - began)
        rig.cluster.now += 5
        await rig.bring_up(chat)
    assert starts[0] == 0
    assert starts[1] < starts[2]


async def test_a_repair_in_trouble_is_told_of_who_waits_for_it_only(rig: Rig, chat: Key) -> None:
    other = Key("default", "other")
    for key in (chat, other):
        rig.cluster.put(service_manifest(key.name))
        await rig.bring_up(key)
    crash(rig, other)
    await rig.settle()
    rig.cluster.run_jobs()
    await rig.settle()
    [pod] = [pod for pod in rig.cluster.all(POD) if "fetch" in pod["metadata"]["name"]]
    pod["status"]["podIP"] = "192.0.2.7"
    rig.cluster.put(pod)
    rig.progress.answers["192.0.2.7"] = Progress(
        phase="downloading",
        bytes_total=100,
        bytes_done=50,
        bytes_per_second=0.0,
        eta_seconds=None,
        commit="c0ffee",
        note="the hub answers 503",
        reason="SourceUnreachable",
    )
    await rig.wake(chat)
    await rig.wake(other)
    assert rig.condition(other).reason == "SourceUnreachable"
    assert rig.condition(chat).reason == "Ready"


def crash(rig: Rig, key: Key) -> None:
    rig.cluster.now += 1
    pods = [pod for pod in rig.cluster.all(POD) if pod["metadata"]["name"].startswith(key.name)]
    pod = next(p for p in pods if "fetch" not in p["metadata"]["name"])
    ended = {"exitCode": 66, "finishedAt": timestamp(rig.cluster.now), "message": "missing"}
    pod["status"]["containerStatuses"] = [
        {"name": "engine", "state": {"terminated": ended}, "restartCount": 0}
    ]
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    rig.cluster.put(pod)


def stick(rig: Rig) -> None:
    """The fetch's pod is there and cannot start."""
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    pod = next(p for p in rig.cluster.all(POD) if "fetch" in p["metadata"]["name"])
    waiting = {"reason": "ImagePullBackOff", "message": "no such tag"}
    pod["status"]["containerStatuses"] = [{"name": "fetch", "state": {"waiting": waiting}}]
    rig.cluster.put(pod)


def images(rig: Rig) -> list[str]:
    jobs = rig.cluster.all(JOB)
    return [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs]


async def test_a_fetch_that_cannot_start_is_replaced_once_the_spec_is_mended(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest(engine={"image": "typo:v1"}))
    await rig.settle()
    stick(rig)
    await rig.settle()
    assert rig.condition(chat).reason == "ImagePull"
    rig.cluster.now += writer.ON_ITS_WAY_SECONDS
    rig.cluster.put(service_manifest(engine={"image": "good:v1"}))
    await rig.settle()
    assert images(rig) == ["good:v1"]
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_a_fetch_that_nobody_wants_any_more_and_cannot_start_goes(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest(engine={"image": "typo:v1"}))
    await rig.settle()
    stick(rig)
    rig.cluster.put(service_manifest(engine={"image": "good:v1"}, replicas=0))
    await rig.settle()
    assert images(rig) == []


async def test_a_fetch_that_has_begun_goes_on_whatever_is_asked_meanwhile(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    rig.cluster.put(service_manifest(engine={"image": "good:v1"}))
    await rig.settle()
    assert images(rig) == ["engine:v1"]


async def test_a_failure_is_of_the_service_that_started_the_fetch(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest("zeta"))
    await rig.settle()
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.woken.clear()
    rig.cluster.run_jobs({"reason": "SourceUnauthorized", "message": "401"})
    await rig.wake(chat)  # the other one records it
    model = {"uri": "hf://org/model", "credentialsSecret": "token"}
    rig.cluster.put(service_manifest("zeta", model=model))
    await rig.settle()
    assert "token" in str(rig.cluster.all(JOB)), "its starter mended it: tried at once"


def complete(rig: Rig) -> None:
    """The fetch's Job ends; the watch of its pod lags."""
    job = rig.cluster.all(JOB)[0]["metadata"]["name"]
    at = timestamp(rig.cluster.now)
    done = {"type": "Complete", "status": "True", "lastTransitionTime": at}
    rig.cluster.set_status(JOB, Key("default", job), {"conditions": [done]})


async def test_a_job_seen_to_end_before_its_pod_is_given_time_for_its_last_words(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    complete(rig)
    await rig.settle()
    assert rig.again[chat] == 1
    assert "fetched" not in str(rig.cluster.all(CLAIM))
    rig.cluster._job_pod(rig.cluster.all(JOB)[0], {"commit": "c0ffee", "bytesTotal": 1000})
    await rig.settle()
    model = rig.status(chat).model
    assert model is not None
    assert (model.commit, model.bytes_total) == ("c0ffee", 1000)


async def test_a_pod_that_never_says_how_it_ended_is_not_waited_for_long(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    complete(rig)
    await rig.settle()
    rig.cluster.now += fetch.LAST_WORDS_SECONDS
    await rig.wake(chat)
    assert rig.condition(chat, "ModelCached").reason == "Cached"


async def test_an_earlier_models_corrupt_files_repair_nothing(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest(model={"uri": "hf://org/other"}))
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 1000})
    await rig.settle()
    crash(rig, chat)
    await rig.settle()
    assert rig.cluster.all(JOB) == []
    assert rig.condition(chat, "ModelCached").reason == "Cached"
