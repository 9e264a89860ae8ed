"""The fetch's bookkeeping: attempts, delays, repairs. The whole way: test_reconcile_cache.py."""

import pytest

from quire_operator import fetch, names, writer
from quire_operator.api import ModelStatus
from quire_operator.kinds import CLAIM, EVENT, JOB, LEASE, POD, Kind, Manifest
from quire_operator.names import Key
from quire_operator.observe import Progress
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_pods import PLAN_REPORT
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


def crash(rig: Rig, chat: Key) -> None:
    rig.cluster.now += 1
    pod = next(p for p in rig.cluster.all(POD) if "fetch" not in p["metadata"]["name"])
    ended = {"exitCode": 66, "finishedAt": timestamp(rig.cluster.now), "message": "missing"}
    pod["status"]["containerStatuses"] = [
        {"name": "engine", "state": {"terminated": ended}, "restartCount": 0}
    ]
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


# ---- how far it came -----------------------------------------------------------------------------


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


# ---- pods that a quota keeps away ----------------------------------------------------------------


def refuse_pods(rig: Rig) -> None:
    """What the Job's controller tells while the API server refuses its pod."""
    [job] = rig.cluster.all(JOB)
    event = {"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "FailedCreate"}
    event |= {"message": 'Error creating: pods "x" is forbidden: exceeded quota: pods'}
    event |= {"involvedObject": {"kind": "Job", "uid": job["metadata"]["uid"]}}
    rig.cluster.put(event | {"metadata": {"name": "refused", "namespace": "default"}})


def nudge_runs(rig: Rig, let_in: list[bool]) -> None:
    """As the Job's controller: it tries again when its Job is written to, or in a minute."""

    def look(kind: Kind, event: str, job: Manifest) -> None:
        nudged = names.ANNOTATION_NUDGED in (job["metadata"].get("annotations") or {})
        if kind is JOB and event == "MODIFIED" and nudged and let_in and not job.get("status"):
            rig.cluster._job_pod(job, None)

    rig.cluster.subscribe(look)


@pytest.mark.parametrize("of", ["plan", "fetch"])
async def test_a_raised_quota_is_found_within_15_s(rig: Rig, chat: Key, of: str) -> None:
    if of == "plan":
        rig.cluster.plans = None
    await begin(rig)
    [job] = rig.cluster.all(JOB)
    assert f"-{of}-" in job["metadata"]["name"]
    refuse_pods(rig)
    let_in: list[bool] = []
    nudge_runs(rig, let_in)
    await pass_time(rig, chat, 25)
    assert rig.condition(chat).reason == "QuotaExceeded"
    before = len(rig.cluster.writes)
    await pass_time(rig, chat, 60)
    nudges = rig.cluster.writes[before:]
    assert set(nudges) <= {f"PATCH Job/{job['metadata']['name']}", *leases(rig)}
    assert 5 <= sum("Job/" in write for write in nudges) <= 6
    let_in.append(True)
    await pass_time(rig, chat, 10)
    assert rig.condition(chat).reason != "QuotaExceeded"
    before = len(rig.cluster.writes)
    await pass_time(rig, chat, 40)
    assert not any("Job/" in write for write in rig.cluster.writes[before:])


def leases(rig: Rig) -> set[str]:
    return {f"PATCH Lease/{lease['metadata']['name']}" for lease in rig.cluster.all(LEASE)}


async def pass_time(rig: Rig, key: Key, seconds: float) -> None:
    """As the queue would: wakes the key when it wanted to be."""
    end = rig.cluster.now + seconds
    while rig.cluster.now < end:
        rig.cluster.now = min(end, rig.cluster.now + (rig.again[key] or seconds))
        await rig.wake(key)


# ---- a claim without a volume --------------------------------------------------------------------

SCHEDULER = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"


def unschedulable(rig: Rig, message: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    for job in rig.cluster.all(JOB):
        rig.cluster._job_pod(job, None)
        at = Key("default", f"{job['metadata']['name']}-pod")
        status = {"phase": "Pending", "conditions": [condition | {"message": message}]}
        rig.cluster.set_status(POD, at, status)


def provisioning_fails(rig: Rig) -> None:
    [claim] = rig.cluster.all(CLAIM)
    event = {"apiVersion": "v1", "kind": "Event", "type": "Warning"}
    event |= {"reason": "ProvisioningFailed", "message": 'storageclass "fast" not found'}
    of = {"kind": "PersistentVolumeClaim", "uid": claim["metadata"]["uid"]}
    rig.cluster.put(event | {"involvedObject": of, "metadata": AT | {"name": "unbound"}})


AT = {"namespace": "default"}


def warnings(rig: Rig) -> list[str]:
    told = [e for e in rig.cluster.all(EVENT) if e["involvedObject"]["kind"] == "InferenceService"]
    return [event["reason"] for event in told if event["type"] == "Warning"]


async def test_of_a_claim_without_a_volume_the_claim_is_told_and_not_its_pods(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    [claim] = rig.cluster.all(CLAIM)
    at = Key("default", claim["metadata"]["name"])
    rig.cluster.set_status(CLAIM, at, {"phase": "Pending"})
    await rig.settle()
    unschedulable(rig, SCHEDULER)
    await rig.settle()
    words = f"claim {at.name} waits for its volume"
    assert (rig.condition(chat).reason, rig.condition(chat).message) == ("Fetching", words)
    provisioning_fails(rig)
    await pass_time(rig, chat, 5)
    assert rig.condition(chat).reason == "ClaimUnbound"
    rig.cluster.bind_claims()
    await rig.settle()
    assert rig.condition(chat).reason == "Fetching", "the scheduler looks again in some seconds"
    assert warnings(rig) == ["ClaimUnbound"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({}, "0/1 nodes are available: 1 Insufficient cpu"),
        (
            {"spec": {"volumes": [{"name": "x", "ephemeral": {"volumeClaimTemplate": {}}}]}},
            SCHEDULER,
        ),
    ],
)
async def test_what_keeps_a_pod_from_a_node_beside_its_bound_claim_is_told(
    rig: Rig, chat: Key, template: dict[str, object], words: str
) -> None:
    rig.cluster.put(service_manifest(podTemplate=template))
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    unschedulable(rig, words)
    await rig.settle()
    assert (rig.condition(chat).reason, rig.condition(chat).message) == ("Unschedulable", words)
