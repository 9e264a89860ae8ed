"""What is read of a service, and told of it: the operator's own work, over one API server."""

from collections.abc import Awaitable, Callable

import pytest

from quire_operator import names
from quire_operator.console.document import Document
from quire_operator.console.reading import read
from quire_operator.errors import ConsoleError, Unavailable
from quire_operator.kinds import CLAIM, JOB, POD, SERVICE_KIND
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_console import ConsoleCluster

Look = Callable[[], Awaitable[Document]]
PLACE = "https://api.example"


async def test_a_ready_service(ready: ConsoleCluster, look: Look) -> None:
    told = await look()
    assert (told.ready.status, told.ready.reason) == ("True", "Ready")
    assert told.conditions[0] == told.ready
    assert told.remedy is None
    assert {"ModelCached", "PodsReady", "RolloutComplete"} <= {c.type for c in told.conditions}
    assert told.url == "http://chat.default.svc.cluster.local/v1"
    assert (told.replicas.wanted, told.replicas.present, told.replicas.ready) == (1, 1, 1)
    assert told.model.commit is not None
    assert told.model.bytes_done == told.model.bytes_total == 272_389_213
    assert told.claim is not None
    assert (told.claim.phase, told.claim.shared_by) == ("Bound", 1)
    assert told.plan is not None
    assert (told.plan.weight_bytes, told.plan.refusal) == (269_060_552, None)
    assert (told.fetch, told.failed_fetch, told.unseen) == (None, None, [])
    [revision] = told.revisions
    assert (revision.wanted, revision.ready, revision.image) == (True, 1, "engine:v1")
    [pod] = told.pods
    assert (pod.state, pod.node, pod.revision) == ("Ready", "node-1", revision.revision)
    assert pod.load is not None
    assert (pod.load.running, pod.load.waiting) == (2, 0)
    assert pod.load.kv_cache_utilization == 0.25


async def test_reading_writes_nothing(ready: ConsoleCluster, look: Look) -> None:
    before = len(ready.writes)
    await look()
    assert ready.writes[before:] == []


async def test_a_fetch_that_runs(rig: Rig, cluster: ConsoleCluster, chat: Key, look: Look) -> None:
    """Its own word, by way of the proxy, is newer than the status."""
    cluster.put(service_manifest(replicas=1))
    await rig.settle()
    cluster.bind_claims()
    await rig.settle()
    cluster.run_jobs()
    await rig.settle()
    [pod] = [body["metadata"]["name"] for body in cluster.all(POD)]
    cluster.pages[pod, names.PROGRESS_PORT, "/progress"] = (
        b'{"phase": "downloading", "bytesTotal": 16000, "bytesDone": 1200, "bytesPerSecond": 370,'
        b' "etaSeconds": 40, "commit": "c0ffee", "note": "the source is slow"}'
    )
    told = await look()
    assert told.ready.reason == "Fetching"
    assert told.fetch is not None
    assert (told.fetch.attempt, told.fetch.state, told.fetch.phase) == (1, "Running", "downloading")
    assert told.fetch.note == "the source is slow"
    assert told.fetch.pod is not None
    assert (told.fetch.pod.name, told.fetch.pod.state) == (pod, "Fetching")
    model = told.model
    assert (model.bytes_done, model.bytes_total, model.bytes_per_second) == (1200, 16000, 370)
    assert (model.eta_seconds, model.commit) == (40, "c0ffee")
    assert told.pods == []


async def test_a_plan_that_is_asked_for(rig: Rig, cluster: ConsoleCluster, look: Look) -> None:
    cluster.plans = None
    cluster.put(service_manifest(replicas=1))
    await rig.settle()
    told = await look()
    assert told.ready.reason == "Planning"
    assert told.plan_job is not None
    assert (told.plan_job.attempt, told.plan_job.state) == (1, "Running")
    assert told.plan_job.pod is None
    cluster.run_jobs()
    await rig.settle()
    told = await look()
    assert told.plan_job is not None
    assert told.plan_job.pod is not None
    assert told.plan_job.pod.state == "Planning"
    assert (told.failed_plan, told.fetch, told.pods) == (None, None, [])


async def test_a_plan_that_failed_and_is_asked_for_again(
    rig: Rig, cluster: ConsoleCluster, chat: Key, look: Look
) -> None:
    cluster.plans = None
    cluster.put(service_manifest(replicas=1))
    await rig.settle()
    cluster.run_jobs({"reason": "BadConfig", "message": "No such option: --frob"})
    await rig.settle()
    told = await look()
    assert told.plan_job is not None
    assert (told.plan_job.attempt, told.plan_job.state) == (1, "Failed")
    failed = told.failed_plan
    assert failed is not None
    assert (failed.failures, failed.reason) == (1, "BadConfig")
    assert failed.message == "No such option: --frob"
    assert (failed.next or "") > (failed.time or "")
    assert failed.message in told.ready.message, "the operator tells the same"
    cluster.now += 3
    await rig.wake(chat)
    told = await look()
    assert told.plan_job is not None
    assert (told.plan_job.attempt, told.plan_job.state) == (2, "Running")
    assert told.failed_plan is not None
    assert (told.failed_plan.failures, told.failed_plan.next) == (1, None)


async def test_events_of_a_plans_pod_are_the_services(
    rig: Rig, cluster: ConsoleCluster, look: Look
) -> None:
    cluster.plans = None
    cluster.put(service_manifest(replicas=1))
    await rig.settle()
    cluster.run_jobs()
    await rig.settle()
    [pod] = cluster.all(POD)
    cluster.now += 1
    cluster.tell(pod, "Warning", "FailedCreatePodSandBox", "no such runtime")
    assert (await look()).events[0].reason == "FailedCreatePodSandBox"


async def test_a_fetch_of_another_service_that_shares_the_claim(
    rig: Rig, cluster: ConsoleCluster, look: Look
) -> None:
    cluster.put(service_manifest("first"))
    cluster.put(service_manifest("chat"))
    await rig.settle()
    cluster.bind_claims()
    await rig.settle()
    cluster.run_jobs()
    await rig.settle()
    [job] = cluster.all(JOB)
    told = await look()
    assert told.fetch is not None
    assert told.fetch.job == job["metadata"]["name"]
    assert told.claim is not None
    assert told.claim.shared_by == 2


async def test_a_fetch_that_failed_and_when_the_next_begins(
    rig: Rig, cluster: ConsoleCluster, look: Look
) -> None:
    cluster.put(service_manifest(replicas=1))
    await rig.settle()
    cluster.bind_claims()
    await rig.settle()
    cluster.run_jobs({"reason": "SourceUnauthorized", "message": "hub: 401 for org/model"})
    await rig.settle()
    told = await look()
    assert told.failed_fetch is not None
    assert told.failed_fetch.failures == 1
    assert told.failed_fetch.reason == "SourceUnauthorized"
    assert told.failed_fetch.message == "hub: 401 for org/model"
    assert told.failed_fetch.next > told.failed_fetch.time
    assert "model.credentialsSecret" in (told.remedy or ""), "as docs/reasons.md says"


async def test_a_crashing_pod_tells_its_last_line(ready: ConsoleCluster, look: Look) -> None:
    [name] = ready.engine_pods()
    log = "Traceback:\nquire-engine: max_model_len must be <= 8192, got 9000\n"
    died = {"terminated": {"exitCode": 1, "message": log, "finishedAt": "2023-11-14T22:14:00Z"}}
    container = {
        "name": "engine",
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": died,
    }
    ready.set_pod(name, phase="Running", containerStatuses=[container])
    [pod] = (await look()).pods
    assert (pod.state, pod.restarts, pod.ready) == ("CrashLoopBackOff", 3, False)
    assert pod.trouble == "exited with 1, 20s ago: max_model_len must be <= 8192, got 9000"
    assert (pod.load, pod.load_missing) == (None, None)


async def test_events_are_the_services_and_its_childrens_warnings(
    ready: ConsoleCluster, look: Look
) -> None:
    """Not those of pods of others, nor what is ordinary in a pod's life."""
    service = await ready.get(SERVICE_KIND, "default", "chat")
    [pod] = [p for p in ready.all(POD) if p["metadata"]["name"] in ready.engine_pods()]
    stranger = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "other", "namespace": "default"},
    }
    ready.tell(service, "Normal", "ScaledUp", "From 1 to 2 replicas")
    ready.now += 5
    ready.tell(pod, "Warning", "Unhealthy", "Readiness probe failed", count=4)
    ready.tell(pod, "Normal", "Pulled", "the image was there")
    ready.tell(ready.put(stranger), "Warning", "BackOff", "not ours")
    told = await look()
    turns = [("Ready", 1), ("Starting", 1), ("Fetching", 1)]
    newest = [(event.reason, event.count) for event in told.events]
    assert newest[:2] == [("Unhealthy", 4), ("ScaledUp", 1)]
    assert sorted(newest[2:]) == sorted(turns)
    assert told.events[0].object == f"Pod/{pod['metadata']['name']}"


@pytest.mark.parametrize(
    ("resource", "parts"),
    [
        ("pods", ["pods"]),
        ("deployments", ["revisions"]),
        ("persistentvolumeclaims", ["claim"]),
        ("jobs", ["fetch", "plan"]),
        ("events", ["events"]),
        ("pods/proxy", ["load"]),
    ],
)
async def test_what_is_forbidden_is_said_and_the_rest_is_shown(
    ready: ConsoleCluster, look: Look, resource: str, parts: list[str]
) -> None:
    ready.forbidden = {resource}
    told = await look()
    assert [unseen.part for unseen in told.unseen] == parts
    assert "kim" in told.unseen[0].why
    assert told.ready.reason == "Ready"
    assert told.replicas.ready == 1, "status has the number, whatever else is forbidden"
    assert told.claim is not None
    assert told.claim.phase == ("Unknown" if "claim" in parts else "Bound")


async def test_a_part_that_cannot_be_had_is_said_too(ready: ConsoleCluster, look: Look) -> None:
    ready.broken["events"] = Unavailable(500, "GET events", "etcdserver: leader changed")
    told = await look()
    assert told.unseen[0].part == "events"
    assert "leader changed" in told.unseen[0].why


async def test_a_pod_that_does_not_answer_is_shown_as_such(
    ready: ConsoleCluster, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire_operator.console.reading.PAGE_SECONDS", 0.01)
    [name] = ready.engine_pods()
    ready.hung = {name}
    [pod] = (await look()).pods
    assert (pod.load, pod.load_missing) == (None, "did not answer within 0.01 s")
    ready.hung, ready.pages = set(), {}
    [pod] = (await look()).pods
    assert "connection refused" in (pod.load_missing or "")


async def test_a_missing_claim(ready: ConsoleCluster, look: Look) -> None:
    [claim] = ready.all(CLAIM)
    ready.remove(CLAIM, Key("default", claim["metadata"]["name"]))
    told = await look()
    assert told.claim is not None
    assert (told.claim.phase, told.claim.requested) == ("Missing", "")


async def test_a_spec_that_does_not_decode_is_told(ready: ConsoleCluster, look: Look) -> None:
    body = await ready.get(SERVICE_KIND, "default", "chat")
    ready.put(body | {"spec": {"model": {"uri": "hf://org/model"}, "replicas": "many"}})
    told = await look()
    assert "replicas" in (told.spec_error or "")
    assert (told.replicas.wanted, told.claim, told.scaling) == (None, None, None)
    assert told.observed_generation == 1
    assert told.generation == 2


async def failure(cluster: ConsoleCluster, name: str = "chat") -> str:
    with pytest.raises(ConsoleError) as caught:
        await read(cluster, Key("default", name), cluster.now, PLACE)
    return str(caught.value)


async def test_a_wrong_name(ready: ConsoleCluster) -> None:
    said = "there is no InferenceService {} in namespace default"
    assert await failure(ready, "caht") == f"{said.format('caht')}; did you mean chat?"
    assert await failure(ready, "zebra") == f"{said.format('zebra')}; there are: chat"
    ready.remove(SERVICE_KIND, Key("default", "chat"))
    assert "nor any other" in await failure(ready)


async def test_a_wrong_name_where_nothing_may_be_listed(ready: ConsoleCluster) -> None:
    """Rights on one name only, as resourceNames give."""
    inner = ready.list_objects

    async def refuse(*args: object, **kwargs: object) -> object:
        ready.forbidden = {"inferenceservices"}
        return await inner(*args, **kwargs)  # type: ignore[arg-type]

    ready.list_objects = refuse  # type: ignore[method-assign,assignment]
    assert (await failure(ready, "caht")).endswith(
        "in namespace default; give another namespace by -n"
    )


async def test_a_cluster_without_quire(ready: ConsoleCluster) -> None:
    ready.unknown = {SERVICE_KIND}
    assert "quire is not installed there" in await failure(ready)


async def test_forbidden_altogether(ready: ConsoleCluster) -> None:
    ready.forbidden = {"inferenceservices"}
    said = await failure(ready)
    assert said.startswith("you may not read inferenceservices.serving.quire.dev in namespace")
    assert "`view`" in said


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "gives no answer"), (401, "does not accept these credentials"), (500, "refuses (500")],
)
async def test_an_api_server_in_trouble(ready: ConsoleCluster, status: int, words: str) -> None:
    ready.broken["inferenceservices"] = Unavailable(status, "GET x", "no answer: boom")
    said = await failure(ready)
    assert said.startswith(PLACE)
    assert words in said
