"""What keeps the pods of fetches and plans from running, and how soon that is found to be over."""

import pytest

from quire_operator import names
from quire_operator.kinds import CLAIM, EVENT, JOB, LEASE, POD, Kind, Manifest
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest


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
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
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


CLAIMING = {"name": "x", "ephemeral": {"volumeClaimTemplate": {}}}
ON_A_CLAIM = {"name": "polite", "uri": "pvc://adapters/polite"}
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
    ("spec", "words"),
    [
        ({}, "0/1 nodes are available: 1 Insufficient cpu"),
        ({"podTemplate": {"spec": {"volumes": [CLAIMING]}}}, SCHEDULER),
        ({"model": {"uri": "hf://a/b", "adapters": [ON_A_CLAIM]}}, SCHEDULER),
    ],
)
async def test_what_keeps_a_pod_from_a_node_beside_its_bound_claim_is_told(
    rig: Rig, chat: Key, spec: dict[str, object], words: str
) -> None:
    rig.cluster.put(service_manifest(**spec))
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    unschedulable(rig, words)
    await rig.settle()
    assert (rig.condition(chat).reason, rig.condition(chat).message) == ("Unschedulable", words)
