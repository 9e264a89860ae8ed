"""The HPA and the ScaledObject: what they say, when they come and go, and never two at a time."""

import itertools
from typing import Any

import pytest

from quire_operator import autoscalers
from quire_operator.api import Spec, decode_spec
from quire_operator.autoscalers import Limits, hpa, scaled_object
from quire_operator.errors import Denied
from quire_operator.kinds import HPA, SCALED_OBJECT, SERVICE_KIND, Manifest
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_autoscalers import run_hpas, run_keda, writers

CHAT = Key("default", "chat")
MODES = ("none", "builtin", "hpa", "keda")
SCALER = "quire-keda.quire-system.svc:9100"
LIMITS = Limits(min_replicas=2)


def spec_of(**scaling: Any) -> Spec:
    return decode_spec({"model": {"uri": "hf://org/model"}, "scaling": scaling})


def external(manifest: Manifest) -> dict[str, Manifest]:
    metrics = [metric["external"] for metric in manifest["spec"]["metrics"]]
    return {metric["metric"]["name"]: metric["target"] for metric in metrics}


def triggers(manifest: Manifest, kind: str) -> list[Manifest]:
    return [trigger for trigger in manifest["spec"]["triggers"] if trigger["type"] == kind]


# ---- the HPA ----


def test_an_hpa_has_a_metric_for_each_target_that_is_set() -> None:
    spec = spec_of(mode="hpa", targets={"queueDepth": 6, "ttftSeconds": 0.5})
    manifest = hpa(CHAT, "uid", spec, LIMITS)
    assert external(manifest) == {
        "quire_queue_depth": {"type": "AverageValue", "averageValue": "6"},
        "quire_ttft_p95_seconds": {"type": "Value", "value": "500m"},
        "quire_kv_cache_utilization": {"type": "Value", "value": "900m"},
    }
    selector = manifest["spec"]["metrics"][0]["external"]["metric"]["selector"]
    assert selector == {"matchLabels": {"service": "chat"}}
    target = manifest["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("InferenceService", "chat")
    assert (manifest["spec"]["minReplicas"], manifest["spec"]["maxReplicas"]) == (2, 4)


def test_a_target_that_is_not_set_is_no_metric() -> None:
    spec = spec_of(mode="hpa", targets={"kvCacheUtilization": None})
    assert list(external(hpa(CHAT, "uid", spec, LIMITS))) == ["quire_queue_depth"]


def test_steps_and_windows_are_the_services() -> None:
    scaling = {
        "scaleUp": {"stabilizationSeconds": 30, "maxStep": 3},
        "scaleDown": {"stabilizationSeconds": 60, "maxStep": 2},
    }
    behavior = autoscalers.behavior(spec_of(**scaling).scaling, LIMITS)
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    assert (up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"]) == (30, 60)
    assert [(p["type"], p["value"]) for p in up["policies"]] == [("Percent", 100), ("Pods", 3)]
    assert up["selectPolicy"] == "Min", "the smaller step, or maxStep would say nothing"
    assert [(p["type"], p["value"]) for p in down["policies"]] == [("Pods", 2)]


def test_unless_told_it_doubles_at_most_and_goes_down_one_by_one() -> None:
    behavior = autoscalers.behavior(spec_of().scaling, LIMITS)
    assert [p["value"] for p in behavior["scaleUp"]["policies"]] == [100]
    assert behavior["scaleDown"]["policies"][0]["value"] == 1
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert behavior["scaleDown"]["selectPolicy"] == "Min"


def test_nothing_shrinks_while_the_minimum_is_not_known() -> None:
    limits = Limits(min_replicas=2, may_shrink=False)
    behavior = autoscalers.behavior(spec_of().scaling, limits)
    assert behavior["scaleDown"]["selectPolicy"] == "Disabled"
    sleepy = spec_of(mode="keda", idleSecondsToZero=60)
    assert "idleReplicaCount" not in scaled_object(CHAT, "uid", sleepy, limits, SCALER)["spec"]


# ---- the ScaledObject ----


def test_keda_asks_the_operator_unless_told_of_a_prometheus() -> None:
    spec = spec_of(mode="keda", targets={"ttftSeconds": 2})
    manifest = scaled_object(CHAT, "uid", spec, LIMITS, SCALER)
    found = {t["metricType"]: t["metadata"] for t in triggers(manifest, "external-push")}
    assert found == {
        "AverageValue": {"scalerAddress": SCALER, "quire_queue_depth": "4"},
        "Value": {
            "scalerAddress": SCALER,
            "quire_ttft_p95_seconds": "2",
            "quire_kv_cache_utilization": "0.9",
        },
    }
    assert len(manifest["spec"]["triggers"]) == 2


def test_a_fallback_holds_what_is_there() -> None:
    manifest = scaled_object(CHAT, "uid", spec_of(mode="keda"), LIMITS, SCALER)
    fallback = manifest["spec"]["fallback"]
    assert fallback["behavior"] == "currentReplicasIfHigher"
    assert fallback["replicas"] == 2, "with 0 KEDA goes to zero on an error"


def test_it_sleeps_only_when_told() -> None:
    awake = scaled_object(CHAT, "uid", spec_of(mode="keda"), LIMITS, SCALER)["spec"]
    assert not {"idleReplicaCount", "cooldownPeriod"} & awake.keys()
    assert awake["minReplicaCount"] == 2
    sleepy = spec_of(mode="keda", idleSecondsToZero=600)
    asleep = scaled_object(CHAT, "uid", sleepy, LIMITS, SCALER)["spec"]
    assert asleep["idleReplicaCount"] == 0
    assert asleep["minReplicaCount"] == 2, "KEDA's HPA keeps the minimum"
    assert asleep["cooldownPeriod"] == asleep["initialCooldownPeriod"] == 0, "operator counts"


def test_a_prometheus_is_asked_for_complete_numbers_only() -> None:
    keda = {"prometheusServer": "http://prometheus.monitoring:9090/"}
    spec = spec_of(mode="keda", keda=keda, targets={"ttftSeconds": 2})
    manifest = scaled_object(CHAT, "uid", spec, LIMITS, None)
    queries = triggers(manifest, "prometheus")
    assert [(t["metricType"], t["metadata"]["threshold"]) for t in queries] == [
        ("AverageValue", "4"),
        ("Value", "2"),
        ("Value", "0.9"),
    ]
    for trigger in queries:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["serverAddress"] == "http://prometheus.monitoring:9090"
        assert "activationThreshold" not in trigger["metadata"]
    assert not triggers(manifest, "external-push")


def test_with_a_prometheus_only_sleep_is_the_operators() -> None:
    keda = {"prometheusServer": "http://prometheus.monitoring:9090"}
    spec = spec_of(mode="keda", keda=keda, idleSecondsToZero=60)
    manifest = scaled_object(CHAT, "uid", spec, LIMITS, SCALER)
    (push,) = triggers(manifest, "external-push")
    assert push["metadata"] == {"scalerAddress": SCALER, "quire_activation": "1"}
    for trigger in triggers(manifest, "prometheus"):
        assert float(trigger["metadata"]["activationThreshold"]) > 1e6


# ---- coming and going ----


def scaled(mode: str, replicas: int = 1, **scaling: Any) -> Manifest:
    return service_manifest(replicas=replicas, scaling={"mode": mode, **scaling})


def set_spec(rig: Rig, manifest: Manifest) -> None:
    live = rig.cluster.all(SERVICE_KIND)
    if live:
        manifest = live[0] | {"spec": manifest["spec"]}
    rig.cluster.put(manifest)


def objects(rig: Rig) -> set[tuple[str, str]]:
    found = [*rig.cluster.all(HPA), *rig.cluster.all(SCALED_OBJECT)]
    return {(body["kind"], body["metadata"]["name"]) for body in found}


WANTED = {
    "none": set(),
    "builtin": set(),
    "hpa": {("HorizontalPodAutoscaler", "chat")},
    "keda": {("ScaledObject", "chat"), ("HorizontalPodAutoscaler", "keda-hpa-chat")},
}


def only_one_writes(rig: Rig) -> None:
    found = writers(rig.cluster, CHAT)
    view = rig.world.snapshot(CHAT)
    assert view is not None
    if view.spec.scaling.mode == "builtin" and view.other_writer is None:
        found.add("builtin")
    assert len(found) <= 1, found


async def settle(rig: Rig) -> None:
    """Until the world stands still, with KEDA and the HPA controller a step behind."""
    for _ in range(6):
        rig.cluster.bind_claims()
        rig.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 1000})
        rig.cluster.run_deployments()
        rig.woken[CHAT] = None
        while rig.woken:
            key = next(iter(rig.woken))
            del rig.woken[key]
            rig.again[key] = await rig.reconciler(key)
            only_one_writes(rig)
        run_keda(rig.cluster)
        only_one_writes(rig)
        run_hpas(rig.cluster)
        await rig.scaled_objects.poll()
        only_one_writes(rig)


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(MODES, 2)))
async def test_a_switch_leaves_nothing_behind_and_never_has_two_writers(
    rig: Rig, before: str, after: str
) -> None:
    set_spec(rig, scaled(before))
    await settle(rig)
    assert objects(rig) == WANTED[before]
    set_spec(rig, scaled(after))
    await settle(rig)
    assert objects(rig) == WANTED[after]
    assert await rig.wake(CHAT) == [], "a second pass writes nothing"
    told = [c for c in rig.status(CHAT).conditions if c.type == "Scaling"]
    if after in ("hpa", "keda"):
        assert (told[0].status, told[0].reason) == ("True", "Active")
    else:
        assert told == [], "builtin's own loop has said nothing yet"
    view = rig.world.snapshot(CHAT)
    assert view is not None
    assert view.other_writer is None


async def test_builtin_waits_for_an_autoscaler_that_is_on_its_way_out(rig: Rig) -> None:
    set_spec(rig, scaled("keda"))
    await settle(rig)
    set_spec(rig, scaled("builtin"))
    await rig.settle()
    view = rig.world.snapshot(CHAT)
    assert view is not None
    assert view.other_writer in ("ScaledObject chat", "HorizontalPodAutoscaler keda-hpa-chat")
    assert rig.again[CHAT] == 2.0, "no watch tells of its end"
    assert rig.condition(CHAT, "Scaling").reason == "Switching"


async def test_what_is_edited_is_applied_and_nothing_else(rig: Rig) -> None:
    set_spec(rig, scaled("hpa"))
    await settle(rig)
    before = len(rig.cluster.writes)
    set_spec(rig, scaled("hpa", maxReplicas=9))
    await settle(rig)
    assert [w for w in rig.cluster.writes[before:] if "status" not in w] == [
        "PATCH HorizontalPodAutoscaler/chat",
        "PATCH InferenceService/chat",
    ]
    assert rig.cluster.all(HPA)[0]["spec"]["maxReplicas"] == 9


async def test_somebody_elses_autoscaler_of_our_name_is_left_alone(rig: Rig) -> None:
    foreign = hpa(CHAT, "someone", spec_of(mode="hpa"), LIMITS)
    foreign["metadata"] = {"name": "chat", "namespace": "default"}
    rig.cluster.put(foreign)
    set_spec(rig, scaled("hpa"))
    await rig.bring_up(CHAT)
    told = rig.condition(CHAT, "Scaling")
    assert (told.status, told.reason) == ("False", "NameConflict")
    ready = rig.condition(CHAT)
    assert (ready.status, ready.reason) == ("True", "ScalingFailed"), "it serves all the same"
    set_spec(rig, scaled("none"))
    await rig.settle()
    assert objects(rig) == {("HorizontalPodAutoscaler", "chat")}


async def test_an_autoscaler_that_is_refused_is_told_of_scaling(rig: Rig) -> None:
    rig.cluster.refuse[SCALED_OBJECT] = Denied(403, "PATCH", "admission webhook says no")
    set_spec(rig, scaled("keda"))
    await rig.bring_up(CHAT)
    told = rig.condition(CHAT, "Scaling")
    assert (told.status, told.reason) == ("False", "Refused")
    assert "admission webhook says no" in told.message
    assert rig.condition(CHAT).status == "True"


# ---- zero ----


def replicas(rig: Rig) -> int:
    found = rig.cluster.all(SERVICE_KIND)[0]["spec"]["replicas"]
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("before", ["none", "builtin", "keda"])
async def test_a_switch_to_hpa_lifts_from_zero(rig: Rig, before: str) -> None:
    set_spec(rig, scaled(before, replicas=0, idleSecondsToZero=None if before == "none" else 60))
    await settle(rig)
    assert replicas(rig) == 0
    set_spec(rig, scaled("hpa", replicas=0))
    await settle(rig)
    assert replicas(rig) == 1


async def test_a_later_zero_is_a_pause(rig: Rig) -> None:
    set_spec(rig, scaled("hpa"))
    await settle(rig)
    set_spec(rig, scaled("hpa", replicas=0))
    await settle(rig)
    assert replicas(rig) == 0
    told = rig.condition(CHAT, "Scaling")
    assert (told.status, told.reason) == ("False", "Paused")


async def test_a_service_made_with_zero_is_paused(rig: Rig) -> None:
    set_spec(rig, scaled("hpa", replicas=0))
    await settle(rig)
    assert replicas(rig) == 0


async def test_keda_is_told_of_a_pause(rig: Rig) -> None:
    """Else it would lift to minReplicaCount within a poll."""
    set_spec(rig, scaled("keda"))
    await settle(rig)
    set_spec(rig, scaled("keda", replicas=0))
    await settle(rig)
    annotations = rig.cluster.all(SCALED_OBJECT)[0]["metadata"]["annotations"]
    assert annotations["autoscaling.keda.sh/paused"] == "true"
    assert rig.condition(CHAT, "Scaling").reason == "Paused"
    set_spec(rig, scaled("keda", replicas=1))
    await settle(rig)
    annotations = rig.cluster.all(SCALED_OBJECT)[0]["metadata"]["annotations"]
    assert "autoscaling.keda.sh/paused" not in annotations


async def test_asleep_is_no_pause(rig: Rig) -> None:
    rig.gateway("203.0.113.9")
    set_spec(rig, scaled("keda", replicas=0, idleSecondsToZero=60))
    await settle(rig)
    annotations = rig.cluster.all(SCALED_OBJECT)[0]["metadata"]["annotations"]
    assert "autoscaling.keda.sh/paused" not in annotations
    told = rig.condition(CHAT, "Scaling")
    assert (told.status, told.reason) == ("True", "Asleep")


# ---- schedules ----


async def test_a_schedule_moves_the_minimum(rig: Rig) -> None:
    schedule = {"cron": "0 8 * * *", "minReplicas": 3}
    rig.cluster.now = 1_700_000_000.0  # 22:13 UTC: it fired this morning
    set_spec(rig, scaled("hpa", schedules=[schedule, {"cron": "0 23 * * *", "minReplicas": 1}]))
    await settle(rig)
    assert rig.cluster.all(HPA)[0]["spec"]["minReplicas"] == 3
    again = rig.again[CHAT]
    assert again is not None
    assert again == pytest.approx(2800, abs=1), "at 23:00 it is looked at again"
    rig.cluster.now += again
    await settle(rig)
    assert rig.cluster.all(HPA)[0]["spec"]["minReplicas"] == 1
