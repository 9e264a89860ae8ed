"""A service's model: its claim, its fetches and what they say, over an API server that behaves."""

from dataclasses import replace
from typing import Any

import pytest

from quire_operator import writer
from quire_operator.errors import Denied
from quire_operator.kinds import (
    BUDGET,
    CLAIM,
    DEPLOYMENT,
    JOB,
    POD,
    SERVICE,
    SERVICE_KIND,
    Kind,
    Manifest,
)
from quire_operator.names import Key
from quire_operator.observe import Progress
from quire_operator.testing import FakeCluster, Rig, service_manifest
from quire_operator.testing_endpoints import event_on


async def test_pods_wait_for_the_files(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    assert rig.cluster.all(DEPLOYMENT) == []
    assert rig.condition(chat).reason == "Fetching"


async def test_bytes_are_told_while_fetching(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    pod = rig.cluster.all(POD)[0]
    pod["status"]["podIP"] = "203.0.113.9"
    rig.cluster.put(pod)
    rig.progress.answers["203.0.113.9"] = Progress(
        phase="downloading",
        bytes_total=16_100_000_000,
        bytes_done=1_200_000_000,
        bytes_per_second=3e8,
        eta_seconds=40.2,
        commit="c0ffee",
    )
    await rig.settle()
    assert rig.condition(chat).message == "1.2 of 16.1 GB at 300.0 MB/s, 40 s left"
    assert rig.again[chat] == 5.0
    status = rig.status(chat)
    assert status.model is not None
    assert status.model.eta_seconds == 40.2


async def test_what_a_fetch_waits_for_is_told(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    pod = rig.cluster.all(POD)[0]
    pod["status"]["podIP"] = "203.0.113.9"
    rig.cluster.put(pod)
    answer = Progress(
        phase="listing",
        bytes_total=None,
        bytes_done=0,
        bytes_per_second=0.0,
        eta_seconds=None,
        commit=None,
        note="http://hub must answer its listing, got HTTP 503",
    )
    rig.progress.answers["203.0.113.9"] = answer
    await rig.settle()
    words = "asking for the files; http://hub must answer its listing, got HTTP 503"
    assert rig.condition(chat).message == words
    rig.progress.answers["203.0.113.9"] = replace(
        answer, bytes_total=1000, note="a must be served, got HTTP 500 again and again"
    )
    rig.cluster.now += 1
    await rig.wake(chat)
    words = "0.0 of 1.0 kB; a must be served, got HTTP 500 again and again"
    assert rig.condition(chat).message == words


async def test_a_fetch_without_a_pod_is_asked_why_whatever_pods_earlier_ones_left(
    rig: Rig, chat: Key
) -> None:
    rig.cluster.put(service_manifest(engine={"image": "typo:v1"}))
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    left = next(p for p in rig.cluster.all(POD) if "fetch" in p["metadata"]["name"])
    left["metadata"]["ownerReferences"] = []  # it takes its time to go
    left["status"] = {}
    rig.cluster.put(left)
    rig.cluster.now += writer.ON_ITS_WAY_SECONDS
    rig.cluster.put(service_manifest())
    await rig.settle()
    assert [j["metadata"]["name"][-1] for j in rig.cluster.all(JOB)] == ["2"]
    words = 'pods "x" is forbidden: exceeded quota: pods'
    job = rig.cluster.all(JOB)[0]
    rig.cluster.put(event_on(job, "FailedCreate", words, rig.cluster.now))
    rig.cluster.now += 10
    await rig.wake(chat)
    assert rig.condition(chat).message == f"the fetch gets no pod: {words}"


async def test_the_job_goes_once_its_result_is_recorded(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.cluster.all(JOB) == []
    assert b'quire_model_downloads_total{result="ok"} 1.0' in rig.reconciler.metrics.text()
    annotations = rig.cluster.all(CLAIM)[0]["metadata"]["annotations"]
    assert any("c0ffee" in value for value in annotations.values())


async def test_a_failed_fetch_tells_why_and_is_tried_again(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"reason": "SourceNotFound", "message": "no such repository org/model"})
    await rig.settle()
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("False", "SourceNotFound")
    assert ready.message.startswith("no such repository org/model (1 attempt so far")
    assert rig.again[chat] == pytest.approx(2.0)
    assert await rig.wake(chat) == []
    rig.cluster.now += 2.5
    await rig.wake(chat)
    jobs = [job["metadata"]["name"] for job in rig.cluster.all(JOB)]
    assert len(jobs) == 1
    assert jobs[0].endswith("-fetch-2")
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_another_secret_is_tried_at_once(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"reason": "SourceUnauthorized", "message": "401"})
    await rig.settle()
    model = {"uri": "hf://org/model", "credentialsSecret": "token"}
    rig.cluster.put(service_manifest(model=model))
    await rig.settle()
    job = rig.cluster.all(JOB)[0]
    assert job["metadata"]["name"].endswith("-fetch-2")
    environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert environment[0]["valueFrom"]["secretKeyRef"] == {"name": "token", "key": "token"}


async def test_credentials_reach_the_fetch_only(rig: Rig, chat: Key) -> None:
    model = {"uri": "hf://org/model", "credentialsSecret": "hub-secret"}
    rig.cluster.put(service_manifest(model=model))
    await rig.bring_up(chat)
    assert "hub-secret" not in str(rig.cluster.all(DEPLOYMENT))


async def test_another_model_takes_another_claim_and_frees_the_first(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    first = rig.cluster.all(CLAIM)[0]["metadata"]["name"]
    rig.cluster.put(service_manifest(model={"uri": "hf://org/other"}))
    await rig.settle()
    assert len(rig.cluster.all(CLAIM)) == 2, "the old revision serves from the first"
    await rig.bring_up(chat)
    claims = [claim["metadata"]["name"] for claim in rig.cluster.all(CLAIM)]
    assert len(claims) == 1
    assert claims != [first]


async def test_a_claim_is_shared_and_goes_with_the_last(rig: Rig, chat: Key) -> None:
    other = Key("default", "other")
    rig.cluster.put(service_manifest())
    rig.cluster.put(service_manifest("other"))
    await rig.bring_up(chat)
    claims = rig.cluster.all(CLAIM)
    assert len(claims) == 1
    assert len(claims[0]["metadata"]["ownerReferences"]) == 2
    assert rig.condition(other).reason == "Ready"
    rig.cluster.remove(SERVICE_KIND, chat)
    await rig.settle()
    assert len(rig.cluster.all(CLAIM)) == 1
    rig.cluster.remove(SERVICE_KIND, other)
    await rig.settle()
    for kind in (CLAIM, JOB, DEPLOYMENT, POD, SERVICE, BUDGET):
        assert rig.cluster.all(kind) == []


async def test_leaving_a_shared_claim_leaves_it_to_the_others(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    rig.cluster.put(service_manifest("other"))
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest(model={"uri": "hf://org/next"}))
    await rig.bring_up(chat)
    owners = {
        claim["metadata"]["annotations"]["serving.quire.dev/uri"]: [
            owner["name"] for owner in claim["metadata"]["ownerReferences"]
        ]
        for claim in rig.cluster.all(CLAIM)
    }
    assert owners == {"hf://org/model": ["other"], "hf://org/next": ["chat"]}


@pytest.mark.parametrize(("prefetch", "jobs"), [(False, 0), (True, 1)])
async def test_at_zero_only_a_prefetch_fetches(
    rig: Rig, chat: Key, prefetch: bool, jobs: int
) -> None:
    rig.cluster.put(service_manifest(replicas=0, cache={"prefetch": prefetch}))
    await rig.settle()
    rig.cluster.bind_claims()
    await rig.settle()
    assert len(rig.cluster.all(JOB)) == jobs


async def test_corrupt_files_are_fetched_anew_and_pods_start_again(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.now += 60
    pod = next(p for p in rig.cluster.all(POD) if "fetch" not in p["metadata"]["name"])
    ended = {"exitCode": 65, "finishedAt": "2023-11-14T22:14:15Z", "message": "model corrupt"}
    pod["status"] |= {
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [
            {
                "name": "engine",
                "restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": ended},
            }
        ],
    }
    rig.cluster.put(pod)
    await rig.settle()
    job = rig.cluster.all(JOB)[0]
    assert job["metadata"]["name"].endswith("-fetch-2")
    assert "--repair" in job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert rig.condition(chat).reason == "Fetching"
    assert "wrong, fetching them anew" in rig.condition(chat).message
    rig.cluster.now += 20
    rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 1000})
    await rig.settle()
    assert f"DELETE Pod/{pod['metadata']['name']}" in rig.cluster.writes
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_a_job_stays_until_its_end_can_be_recorded(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.refuse[CLAIM] = Denied(403, "PATCH claims", "a webhook says no")
    rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 1000})
    for _ in range(3):
        await rig.wake(chat)
    jobs = [job["metadata"]["name"].rpartition("-")[2] for job in rig.cluster.all(JOB)]
    assert jobs == ["1"], "not fetched again and again"
    assert rig.condition(chat).reason == "Refused"
    assert rig.cluster.all(DEPLOYMENT) == []
    rig.cluster.refuse.clear()
    await rig.wake(chat)
    assert b'quire_model_downloads_total{result="ok"} 1.0' in rig.reconciler.metrics.text()
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


class FixedSize(FakeCluster):
    """A cluster whose claims cannot grow."""

    async def patch(self, kind: Kind, *args: Any, **more: Any) -> Manifest:
        if kind is CLAIM and "spec" in args[2]:
            self.writes.append("PATCH size")
            raise Denied(403, "PATCH claims", "only dynamically provisioned pvc can be resized")
        return await super().patch(kind, *args, **more)


async def test_a_claim_that_cannot_grow_is_told_and_not_asked_again(chat: Key) -> None:
    rig = Rig(cluster=FixedSize())
    rig.cluster.put(service_manifest())
    rig.cluster.put(service_manifest("other", cache={"size": "60Gi"}))
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest(cache={"size": "50Gi"}))
    await rig.settle()
    assert await rig.wake(chat) == []
    assert rig.cluster.writes.count("PATCH size") == 2, "once for each size"
    ready = rig.condition(chat)
    assert (ready.status, ready.reason) == ("True", "ClaimCannotGrow")
    assert "of 1Gi cannot grow to cache.size 50Gi: only dynamically" in ready.message
    rig.cluster.put(service_manifest(cache={"size": "1Gi"}))
    await rig.settle()
    assert rig.condition(chat).reason == "Ready"


async def test_a_full_claim_that_cannot_grow_says_both(chat: Key) -> None:
    rig = Rig(cluster=FixedSize())
    rig.cluster.put(service_manifest())
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"reason": "NoSpace", "message": "needs 30.0 GB, 20.0 GB are free"})
    rig.cluster.put(service_manifest(cache={"size": "50Gi"}))
    await rig.settle()
    assert rig.condition(chat).reason == "NoSpace"
    assert "cannot grow" in rig.condition(chat).message


async def test_a_full_claim_grows_and_its_fetch_goes_on_at_once(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(cache={"size": "20Gi"}))
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs({"reason": "NoSpace", "message": "needs 30.0 GB, 20.0 GB are free"})
    await rig.settle()
    [before] = rig.cluster.all(CLAIM)
    rig.cluster.put(service_manifest(cache={"size": "50Gi"}))
    await rig.settle()
    [claim] = rig.cluster.all(CLAIM)
    assert claim["metadata"]["uid"] == before["metadata"]["uid"]
    assert claim["spec"]["resources"]["requests"] == {"storage": "50Gi"}
    assert len(rig.cluster.all(JOB)) == 1, "another attempt, without waiting"
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"


async def test_files_on_a_claim_of_the_users_need_no_fetch(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest(model={"uri": "pvc://models/llama/8b"}))
    await rig.bring_up(chat)
    assert rig.cluster.all(CLAIM) == []
    container = rig.cluster.all(DEPLOYMENT)[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:2] == ["serve", "/models/llama/8b"]
    assert rig.condition(chat, "ModelCached").reason == "NotNeeded"


async def test_a_claim_of_the_users_is_filled_in_a_folder_of_its_own(rig: Rig, chat: Key) -> None:
    cache = {"mode": "existing", "existingClaim": "big-disk"}
    rig.cluster.put(service_manifest(cache=cache))
    await rig.settle()
    assert rig.condition(chat).reason == "ClaimUnbound"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "big-disk", "namespace": "default"},
        "spec": {},
        "status": {"phase": "Bound"},
    }
    rig.cluster.put(claim)
    await rig.wake(chat)
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"
    assert await rig.wake(chat) == []
    spec = rig.cluster.all(DEPLOYMENT)[0]["spec"]["template"]["spec"]
    assert spec["containers"][0]["args"][1].startswith("/models/quire-")
    rig.cluster.remove(SERVICE_KIND, chat)
    await rig.settle()
    assert len(rig.cluster.all(CLAIM)) == 1, "it is the user's"
