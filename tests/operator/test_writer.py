"""Whose turn it is to write a claim: one fetch at a time, whatever becomes of the one before."""

import asyncio
from dataclasses import replace

import pytest

from quire_operator import writer
from quire_operator.apply import Applier
from quire_operator.errors import Conflict, Denied
from quire_operator.kinds import CLAIM, JOB, LEASE, POD, SERVICE_KIND, Manifest
from quire_operator.names import Key
from quire_operator.observe import Observation, observe
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_pods import PLAN_REPORT
from quire_operator.values import micro_timestamp, timestamp
from quire_operator.views import LeaseView

CHAT, OTHER = Key("default", "chat"), Key("default", "other")
EXISTING = {"mode": "existing", "existingClaim": "disk"}


def lease(rig: Rig) -> Manifest:
    [found] = rig.cluster.all(LEASE)
    return found


def holder(rig: Rig) -> str | None:
    found: str | None = lease(rig)["spec"].get("holderIdentity")
    return found


def jobs(rig: Rig) -> list[str]:
    """Fetches, without plans."""
    names = (job["metadata"]["name"] for job in rig.cluster.all(JOB))
    return sorted(name for name in names if "-fetch-" in name)


def pod_of(rig: Rig, job: str) -> Manifest:
    [found] = [pod for pod in rig.cluster.all(POD) if pod["metadata"]["name"] == f"{job}-pod"]
    return found


def on_node(rig: Rig, pod: Manifest, **metadata: object) -> Manifest:
    """A fetch's pod, on a node and running."""
    pod["spec"] = {**pod["spec"], "nodeName": "node-1"}
    pod["metadata"] |= metadata
    return rig.cluster.put(pod)


def fail_job(rig: Rig, job: str, condition: str = "Failed") -> None:
    at = timestamp(rig.cluster.now)
    failed = {"type": condition, "status": "True", "lastTransitionTime": at, "message": "backoff"}
    rig.cluster.set_status(JOB, Key("default", job), {"conditions": [failed]})


async def pass_time(rig: Rig, seconds: float, *keys: Key) -> None:
    """As the queue would: wakes each key when it wanted to be."""
    end = rig.cluster.now + seconds
    while rig.cluster.now < end:
        waits = [rig.again[key] or seconds for key in keys]
        rig.cluster.now = min(end, rig.cluster.now + min(waits))
        for key in keys:
            await rig.wake(key)


async def start(rig: Rig, name: str = "chat", **spec: object) -> str:
    """A service whose fetch runs; the name of its Job."""
    rig.cluster.put(service_manifest(name, **spec))
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    [job] = jobs(rig)
    on_node(rig, pod_of(rig, job))
    await rig.settle()
    return job


def disk(rig: Rig) -> None:
    """A claim of the user's."""
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Bound"}}
    rig.cluster.put(body | {"metadata": {"name": "disk", "namespace": "default"}, "spec": {}})


# ---- one fetch's way ----------------------------------------------------------------------------


async def test_the_lease_is_the_claims_and_comes_before_the_job(rig: Rig) -> None:
    job = await start(rig)
    written = rig.cluster.writes
    [claim] = rig.cluster.all(CLAIM)
    name = f"{claim['metadata']['name']}-writer"
    assert written.index(f"POST Lease/{name}") < written.index(f"POST Job/{job}")
    held = lease(rig)
    assert held["metadata"]["name"] == name
    assert held["metadata"]["ownerReferences"][0]["uid"] == claim["metadata"]["uid"]
    assert held["spec"] == {
        "holderIdentity": job,
        "leaseDurationSeconds": 60,
        "acquireTime": micro_timestamp(rig.cluster.now),
        "renewTime": micro_timestamp(rig.cluster.now),
        "leaseTransitions": 1,
    }


async def test_it_is_renewed_while_the_job_lives_and_nothing_else_is_written(rig: Rig) -> None:
    await start(rig)
    before, taken = len(rig.cluster.writes), rig.cluster.now
    await pass_time(rig, 300, CHAT)
    written = rig.cluster.writes[before:]
    assert set(written) == {f"PATCH Lease/{lease(rig)['metadata']['name']}"}
    assert 300 / 20 <= len(written) <= 300 / 15
    spec = lease(rig)["spec"]
    assert spec["acquireTime"] == micro_timestamp(taken)
    assert spec["renewTime"] >= micro_timestamp(rig.cluster.now - 20)
    assert spec["leaseTransitions"] == 1


@pytest.mark.parametrize("report", [{"commit": "c"}, {"reason": "Stalled", "message": "silence"}])
async def test_it_is_given_back_once_the_fetch_has_ended(
    rig: Rig, report: dict[str, object]
) -> None:
    await start(rig)
    rig.cluster.run_jobs(report)
    await rig.settle()
    assert holder(rig) is None
    assert await rig.wake(CHAT) == []


async def test_nobody_gives_back_what_another_has_taken_meanwhile(rig: Rig) -> None:
    """Two that look on at once: the later one's write meets a newer Lease."""
    job = await start(rig)
    stale = rig.world.get(LEASE, Key("default", lease(rig)["metadata"]["name"]))
    body = lease(rig)
    body["spec"]["holderIdentity"] = "another-fetch-1"
    rig.cluster.put(body)
    assert isinstance(stale, LeaseView)
    assert stale.holder == job
    seen = replace(observed(rig), writer=None)
    with pytest.raises(Conflict):
        await Applier(rig.cluster, rig.world, seen).run((writer.Release(stale),))
    assert holder(rig) == "another-fetch-1"


def observed(rig: Rig) -> Observation:
    service = rig.world.service(CHAT)
    assert service is not None
    assert service.spec is not None
    defaults = rig.reconciler.defaults
    return observe(rig.world, CHAT, service, service.spec, defaults, rig.cluster.now)


async def test_one_that_went_with_its_claim_needs_no_giving_back(rig: Rig) -> None:
    await start(rig)
    at = Key("default", lease(rig)["metadata"]["name"])
    stale, seen = rig.world.get(LEASE, at), observed(rig)
    assert isinstance(stale, LeaseView)
    rig.cluster.remove(LEASE, at)
    assert await Applier(rig.cluster, rig.world, seen).run((writer.Release(stale),)) == ()


async def test_one_that_somebody_emptied_is_taken_anew(rig: Rig) -> None:
    job = await start(rig)
    body = lease(rig)
    body["spec"]["holderIdentity"] = None
    rig.cluster.put(body)
    await rig.wake(CHAT)
    assert holder(rig) == job
    assert await rig.wake(CHAT) == []


async def test_it_goes_with_its_claim(rig: Rig) -> None:
    await start(rig)
    rig.cluster.remove(SERVICE_KIND, CHAT)
    assert rig.cluster.all(CLAIM) == rig.cluster.all(LEASE) == []


async def test_a_lease_that_somebody_deleted_is_taken_anew(rig: Rig) -> None:
    job = await start(rig)
    rig.cluster.remove(LEASE, Key("default", lease(rig)["metadata"]["name"]))
    await rig.wake(CHAT)
    assert lease(rig)["spec"]["holderIdentity"] == job


async def test_a_foreign_lease_of_that_name_is_left_alone(rig: Rig) -> None:
    disk(rig)
    foreign: Manifest = {
        "apiVersion": LEASE.api_version,
        "kind": "Lease",
        "metadata": {"name": "disk-writer", "namespace": "default"},
        "spec": {"holderIdentity": "somebody"},
    }
    rig.cluster.put(foreign)
    rig.world.drop(LEASE, Key("default", "disk-writer"))  # without our label no watch tells of it
    rig.cluster.put(service_manifest(cache=EXISTING))
    await rig.settle()
    assert rig.condition(CHAT).reason == "NameConflict"
    assert jobs(rig) == []
    assert lease(rig)["spec"] == {"holderIdentity": "somebody"}


# ---- whose end is not known ---------------------------------------------------------------------


async def test_a_pod_deleted_by_force_is_waited_for_until_the_lease_runs_out(rig: Rig) -> None:
    job = await start(rig)
    renewed = rig.cluster.now
    rig.cluster.now += 5
    rig.cluster.remove(POD, Key("default", f"{job}-pod"))
    fail_job(rig, job)
    await rig.settle()
    ready = rig.condition(CHAT)
    assert ready.reason == "Interrupted"
    await pass_time(rig, renewed + 59 - rig.cluster.now, CHAT)
    assert jobs(rig) == [job], "it stays: by it the doubt outlives a restart"
    words = f"waiting for fetch {job} of claim {rig.cluster.all(CLAIM)[0]['metadata']['name']}"
    assert words in rig.condition(CHAT).message
    assert words in rig.condition(CHAT, "ModelCached").message
    await pass_time(rig, 3, CHAT)
    assert jobs(rig) == [job.replace("fetch-1", "fetch-2")]
    spec = lease(rig)["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == (jobs(rig)[0], 2)


@pytest.mark.parametrize("condition", ["Failed", "FailureTarget"])
async def test_a_pod_on_a_lost_node_is_waited_for_until_the_lease_runs_out(
    rig: Rig, condition: str
) -> None:
    job = await start(rig)
    renewed = rig.cluster.now
    pod = pod_of(rig, job)
    on_node(rig, pod, deletionTimestamp=timestamp(renewed), finalizers=["kubernetes"])
    fail_job(rig, job, condition)
    await rig.settle()
    await pass_time(rig, 59, CHAT)
    assert jobs(rig) == [job]
    await pass_time(rig, 3, CHAT)
    assert job.replace("fetch-1", "fetch-2") in jobs(rig)


async def test_another_model_on_the_claim_waits_for_it_too(rig: Rig) -> None:
    disk(rig)
    job = await start(rig, cache=EXISTING)
    rig.cluster.remove(POD, Key("default", f"{job}-pod"))
    fail_job(rig, job)
    rig.cluster.put(service_manifest(model={"uri": "hf://org/other"}, cache=EXISTING))
    await rig.settle()
    await pass_time(rig, 58, CHAT)
    assert jobs(rig) == [job]
    await pass_time(rig, 4, CHAT)
    assert len(jobs(rig)) == 1
    assert jobs(rig) != [job]


async def test_a_pod_that_is_seen_to_end_is_waited_for_no_longer(rig: Rig) -> None:
    job = await start(rig)
    pod = on_node(rig, pod_of(rig, job), deletionTimestamp=timestamp(rig.cluster.now))
    fail_job(rig, job)
    await rig.settle()
    await pass_time(rig, 10, CHAT)
    assert jobs(rig) == [job]
    pod["status"]["phase"] = "Failed"
    rig.cluster.put(pod)
    await rig.settle()
    await pass_time(rig, 2, CHAT)
    assert jobs(rig) == [job.replace("fetch-1", "fetch-2")]


async def test_a_job_that_is_gone_is_waited_for_as_long_as_its_pod_is_there(rig: Rig) -> None:
    job = await start(rig)
    rig.cluster.now += 20
    orphan = pod_of(rig, job)
    orphan["metadata"]["ownerReferences"] = []
    rig.cluster.put(orphan)
    rig.cluster.remove(JOB, Key("default", job))
    await rig.settle()
    assert jobs(rig) == []
    rig.cluster.remove(POD, Key("default", f"{job}-pod"))
    await rig.wake(CHAT)
    assert jobs(rig) == [job.replace("fetch-1", "fetch-2")]


async def test_a_new_operator_waits_as_the_old_one_did(rig: Rig) -> None:
    """Lease, Job and pod say all there is to know: nothing lies in the process."""
    job = await start(rig)
    rig.cluster.remove(POD, Key("default", f"{job}-pod"))
    fail_job(rig, job)
    await rig.settle()
    rig.cluster.now += 30
    before = len(rig.cluster.writes)
    successor = restarted(rig)
    await successor.wake(CHAT)
    assert set(rig.cluster.writes[before:]) <= {"PATCH InferenceService/chat"}, "its status"
    await pass_time(successor, 28, CHAT)
    assert jobs(rig) == [job]
    await pass_time(successor, 3, CHAT)
    assert jobs(rig) == [job.replace("fetch-1", "fetch-2")]


def restarted(rig: Rig) -> Rig:
    """Another operator over the same cluster."""
    successor = Rig(cluster=rig.cluster)
    for kind in (SERVICE_KIND, CLAIM, JOB, POD, LEASE):
        for body in rig.cluster.all(kind):
            successor._feed(kind, "MODIFIED", body)
    return successor


async def plan_first(rig: Rig, *services: Manifest) -> None:
    """Their memory plans are made; what comes next is the fetch."""
    rig.cluster.plans = None
    for service in services:
        rig.cluster.put(service)
    await rig.settle()
    rig.cluster.run_jobs(dict(PLAN_REPORT))


async def test_an_operator_killed_between_lease_and_job_goes_on(rig: Rig) -> None:
    await plan_first(rig, service_manifest())
    rig.cluster.refuse[JOB] = Conflict(409, "POST jobs", "the operator dies here")
    with pytest.raises(Conflict):
        await rig.settle()
    del rig.cluster.refuse[JOB]
    rig.cluster.bind_claims()
    successor = restarted(rig)
    await successor.wake(CHAT)
    assert jobs(rig) == [], "the Job may be on its way"
    await pass_time(successor, writer.ON_ITS_WAY_SECONDS, CHAT)
    assert len(jobs(rig)) == 1
    assert lease(rig)["spec"]["holderIdentity"] == jobs(rig)[0]


async def test_a_fetch_that_is_not_let_in_is_told_all_the_while_and_holds_nothing(
    rig: Rig,
) -> None:
    """The service would wait for a Job to end that never was."""
    await plan_first(rig, service_manifest())
    rig.cluster.refuse[JOB] = Denied(403, "POST jobs", "a policy says no")
    await rig.settle()
    for _ in range(6):
        told = rig.condition(CHAT)
        assert told.reason == "Refused", told
        assert "a policy says no" in told.message
        assert holder(rig) is None
        await pass_time(rig, 10, CHAT)
    del rig.cluster.refuse[JOB]
    await pass_time(rig, 10, CHAT)
    assert len(jobs(rig)) == 1
    assert lease(rig)["spec"]["holderIdentity"] == jobs(rig)[0]


# ---- two who want to write ----------------------------------------------------------------------


async def test_two_contents_on_one_claim_are_fetched_one_after_the_other(rig: Rig) -> None:
    disk(rig)
    first = await start(rig, cache=EXISTING)
    rig.cluster.put(service_manifest("other", model={"uri": "hf://org/other"}, cache=EXISTING))
    await rig.settle()
    assert jobs(rig) == [first]
    words = f"waiting for fetch {first} of claim disk to end"
    assert rig.condition(OTHER).reason == rig.condition(OTHER, "ModelCached").reason == "Fetching"
    assert rig.condition(OTHER).message == rig.condition(OTHER, "ModelCached").message == words
    assert await rig.wake(OTHER) == [], "who waits writes nothing"
    await pass_time(rig, 90, CHAT, OTHER)
    assert jobs(rig) == [first], "as long as it takes"
    rig.cluster.run_jobs({"commit": "c"})
    await rig.settle()
    await pass_time(rig, 2, CHAT, OTHER)
    [second] = jobs(rig)
    assert second != first
    assert lease(rig)["spec"]["holderIdentity"] == second


async def test_the_first_ones_deletion_lets_the_second_go_on(rig: Rig) -> None:
    disk(rig)
    first = await start(rig, cache=EXISTING)
    rig.cluster.put(service_manifest("other", model={"uri": "hf://org/other"}, cache=EXISTING))
    await rig.settle()
    rig.cluster.now += 30
    rig.cluster.remove(SERVICE_KIND, CHAT)
    await pass_time(rig, 3, OTHER)
    assert jobs(rig) != [first]
    assert len(jobs(rig)) == 1


@pytest.mark.parametrize("same_content", [True, False])
async def test_two_services_at_once_make_one_job(rig: Rig, same_content: bool) -> None:
    """Two workers plan over the same world; the Lease lets one of them go on."""
    disk(rig)
    uri = "hf://org/model" if same_content else "hf://org/other"
    other = service_manifest("other", model={"uri": uri}, cache=EXISTING)
    await plan_first(rig, service_manifest(cache=EXISTING), other)
    rig.woken.clear()
    slow(rig)
    outcomes = await asyncio.gather(
        rig.reconciler(CHAT), rig.reconciler(OTHER), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(Conflict) == 1
    assert len(jobs(rig)) == 1
    await rig.wake(CHAT)
    await rig.wake(OTHER)
    assert len(jobs(rig)) == 1


def slow(rig: Rig) -> None:
    """Every write takes a moment, in which others run."""
    create = rig.cluster.create

    async def later(manifest: Manifest, manager: str) -> Manifest:
        await asyncio.sleep(0)
        return await create(manifest, manager)

    rig.cluster.create = later  # type: ignore[method-assign]


async def test_a_lease_that_was_taken_a_moment_ago_is_not_taken_over(rig: Rig) -> None:
    """Its holder's Job is made by the next call, of another worker."""
    disk(rig)
    rig.cluster.put(service_manifest(cache=EXISTING))
    await rig.settle()
    [first] = jobs(rig)
    rig.cluster.remove(JOB, Key("default", first))
    rig.cluster.remove(SERVICE_KIND, CHAT)
    rig.cluster.put(service_manifest("other", model={"uri": "hf://org/other"}, cache=EXISTING))
    await rig.settle()
    assert jobs(rig) == []
    await pass_time(rig, writer.ON_ITS_WAY_SECONDS + 1, OTHER)
    assert len(jobs(rig)) == 1


def test_others_that_look_on_renew_only_if_the_starter_does_not(rig: Rig) -> None:
    asyncio.run(start(rig))
    found = rig.world.writer(Key("default", rig.cluster.all(CLAIM)[0]["metadata"]["name"]))
    claim = rig.world.claim(Key("default", rig.cluster.all(CLAIM)[0]["metadata"]["name"]))
    assert found is not None
    assert claim is not None
    assert found.job is not None
    starter = found.job.meta.owners[0]

    def moves(service: str, left: float) -> bool:
        late = replace(found, seconds_left=left)
        step = writer.move(
            late, claim, starting=None, running=None, service=service, now=rig.cluster.now
        )
        return step is not None

    assert [moves(starter, left) for left in (46, 45)] == [False, True]
    assert [moves("uid-of-another", left) for left in (45, 31, 30)] == [False, False, True]
