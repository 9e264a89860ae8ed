"""Whatever the spec, whatever the world has come to: plans converge, and then nothing is to do."""

import asyncio
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_operator.kinds import (
    BUDGET,
    CLAIM,
    DEPLOYMENT,
    HPA,
    JOB,
    LEASE,
    POD,
    SCALED_OBJECT,
    SERVICE,
    SERVICE_KIND,
)
from quire_operator.names import Key
from quire_operator.testing import Rig, node_manifest, service_manifest
from quire_operator.testing_autoscalers import run_keda
from quire_operator.testing_pods import PLAN_REPORT

CHAT = Key("default", "chat")
CHILDREN = (DEPLOYMENT, SERVICE, BUDGET, CLAIM, JOB, LEASE, POD, HPA, SCALED_OBJECT)

models = st.sampled_from(
    [
        {"uri": "hf://org/model"},
        {"uri": "hf://org/model", "revision": "v2"},
        {"uri": "hf://org/other/file.gguf"},
        {"uri": "pvc://disk/llama"},
    ]
)
specs = st.fixed_dictionaries(
    {"model": models, "replicas": st.integers(0, 3)},
    optional={
        "cache": st.sampled_from(
            [{}, {"mode": "none"}, {"size": "30Gi"}, {"prefetch": True}, {"size": "1024Mi"}]
        ),
        "resources": st.sampled_from([{}, {"gpus": 0}, {"gpuMemory": "24Gi"}]),
        "engine": st.sampled_from([{}, {"maxModelLen": 512}, {"image": "engine:v9"}]),
        "scaling": st.sampled_from([{}, *({"mode": mode} for mode in ("builtin", "hpa", "keda"))]),
        "podTemplate": st.sampled_from([{}, {"spec": {"nodeSelector": {"a": "b"}}}]),
    },
)
disturbances = st.lists(
    st.sampled_from(
        [
            "job ends",
            "job fails",
            "pods",
            "unready",
            "bind",
            "lose a pod",
            "lose a child",
            "edit",
            "wait",
            "keda",
            "plans wait",
            "plans fail",
            "node",
            "status lost",
        ]
    ),
    max_size=8,
)
steps = st.lists(st.tuples(specs, disturbances), min_size=1, max_size=4)


def disturb(rig: Rig, what: str, seed: int) -> None:
    chance, cluster = random.Random(seed), rig.cluster
    if what in ("job ends", "job fails"):
        report: dict[str, object] = {"reason": "Stalled", "message": "m"}
        cluster.run_jobs({"commit": "c"} if what == "job ends" else report)
    elif what in ("pods", "unready"):
        cluster.run_deployments(ready=what == "pods")
    elif what == "bind":
        cluster.bind_claims()
    elif what == "keda":
        run_keda(cluster)
    elif what in ("plans wait", "plans fail"):
        failed = {"reason": "SourceUnreachable", "message": "m"}
        cluster.plans = failed if what == "plans fail" else None
    elif what == "node":
        memory = {"nvidia.com/gpu.memory": str(chance.choice([16384, 81559])), "a": "b"}
        cluster.put(node_manifest("node", memory))
    elif what == "status lost":
        cluster.set_status(SERVICE_KIND, CHAT, {})
    elif what == "wait":
        cluster.now += chance.choice([1, 30, 700])
    else:
        lose_or_edit(rig, what, chance)


def lose_or_edit(rig: Rig, what: str, chance: random.Random) -> None:
    kinds = (POD,) if what == "lose a pod" else CHILDREN
    found = [(kind, body) for kind in kinds for body in rig.cluster.all(kind)]
    if not found:
        return
    kind, body = chance.choice(found)
    if what != "edit":
        rig.cluster.remove(kind, Key("default", body["metadata"]["name"]))
    elif kind is SERVICE:
        body["spec"]["ports"] = []
        rig.cluster.put(body)
    elif kind is DEPLOYMENT:
        body["spec"]["replicas"] = 7
        rig.cluster.put(body)


async def finish(rig: Rig) -> None:
    rig.cluster.plans = dict(PLAN_REPORT)
    rig.cluster.run_jobs({"reason": "Interrupted", "message": "a plan that waited"})
    for _ in range(5):
        rig.cluster.now += 600  # past every delay
        run_keda(rig.cluster)
        await rig.scaled_objects.poll()
        rig.woken[CHAT] = None
        await rig.bring_up(CHAT)


async def live(story: list[tuple[dict[str, Any], list[str]]]) -> None:
    rig = Rig()
    for number, (spec, events) in enumerate(story):
        body = service_manifest(**spec)
        live_body = rig.cluster.all(SERVICE_KIND)
        if live_body:
            live_body[0]["spec"] = body["spec"]
            body = live_body[0]
        rig.cluster.put(body)
        await rig.settle()
        for index, event in enumerate(events):
            disturb(rig, event, 100 * number + index)
            await rig.settle()
    await finish(rig)
    check(rig, story[-1][0].get("scaling", {}).get("mode", "none"))
    assert await rig.wake(CHAT) == [], "a second plan over an unchanged world is empty"
    rig.cluster.remove(SERVICE_KIND, CHAT)
    await rig.settle()
    run_keda(rig.cluster)  # its finalizer
    assert {kind.kind: rig.cluster.all(kind) for kind in CHILDREN} == {
        kind.kind: [] for kind in CHILDREN
    }


AUTOSCALERS = {
    "hpa": {"HorizontalPodAutoscaler/chat"},
    "keda": {"ScaledObject/chat", "HorizontalPodAutoscaler/keda-hpa-chat"},
}


def check(rig: Rig, mode: str) -> None:
    deployments = rig.cluster.all(DEPLOYMENT)
    replicas = rig.cluster.all(SERVICE_KIND)[0]["spec"]["replicas"]
    assert len(deployments) <= 1
    assert sum(d["spec"]["replicas"] for d in deployments) == replicas
    found = [*rig.cluster.all(HPA), *rig.cluster.all(SCALED_OBJECT)]
    names = {f"{body['kind']}/{body['metadata']['name']}" for body in found}
    paused = {"HorizontalPodAutoscaler/keda-hpa-chat"} if replicas == 0 else set()
    assert names == AUTOSCALERS.get(mode, set()) - paused
    assert len(rig.cluster.all(CLAIM)) <= 1, "claims of earlier specs are given back"
    assert len(rig.cluster.all(SERVICE)) == len(rig.cluster.all(BUDGET)) == 1
    assert rig.cluster.all(SERVICE)[0]["spec"]["ports"]
    ready = rig.condition(CHAT)
    expected = ("True", "Ready") if replicas else ("False", "ScaledToZero")
    assert (ready.status, ready.reason) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=steps)
def test_plans_converge(story: list[tuple[dict[str, Any], list[str]]]) -> None:
    asyncio.run(live(story))
