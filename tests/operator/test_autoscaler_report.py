"""Condition Scaling of modes hpa and keda: the autoscalers' own words, and the way out."""

from typing import Any

import pytest

from quire_operator.kinds import HPA, SCALED_OBJECT
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_autoscalers import run_hpas, run_keda, set_conditions
from quire_operator.world import ScalingReport

CHAT = Key("default", "chat")
READY = {"type": "Ready", "status": "True", "reason": "ScaledObjectReady", "message": "m"}


async def up(rig: Rig, mode: str, replicas: int = 1, **scaling: Any) -> None:
    rig.cluster.put(service_manifest(replicas=replicas, scaling={"mode": mode, **scaling}))
    await rig.bring_up(CHAT)
    run_keda(rig.cluster)
    run_hpas(rig.cluster)
    await look(rig)


async def look(rig: Rig) -> None:
    await rig.scaled_objects.poll()
    await rig.wake(CHAT)


def scaling(rig: Rig) -> tuple[str, str, str]:
    told = rig.condition(CHAT, "Scaling")
    return told.status, told.reason, told.message


def condition(type_: str, status: str, reason: str, message: str = "words") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason, "message": message}


# ---- hpa ----


async def test_an_hpa_that_works_is_active(rig: Rig) -> None:
    await up(rig, "hpa")
    status, reason, message = scaling(rig)
    assert (status, reason) == ("True", "Active")
    assert "HorizontalPodAutoscaler chat" in message
    wanted = rig.status(CHAT).scaling
    assert wanted is not None
    assert wanted.desired == 1


async def test_an_hpa_that_nobody_looked_at_is_starting(rig: Rig) -> None:
    rig.cluster.put(service_manifest(scaling={"mode": "hpa"}))
    await rig.bring_up(CHAT)
    assert scaling(rig)[:2] == ("Unknown", "Starting")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (condition("AbleToScale", "False", "FailedGetScale"), ("False", "FailedGetScale")),
        (
            condition("ScalingActive", "False", "FailedGetExternalMetric"),
            ("False", "FailedGetExternalMetric"),
        ),
        (condition("ScalingLimited", "True", "TooManyReplicas"), ("True", "AtMaxReplicas")),
        (condition("ScalingLimited", "True", "TooFewReplicas"), ("True", "Active")),
    ],
)
async def test_what_an_hpa_says(rig: Rig, told: dict[str, str], expected: tuple[str, str]) -> None:
    await up(rig, "hpa")
    set_conditions(rig.cluster, HPA, "chat", told)
    await look(rig)
    status, reason, message = scaling(rig)
    assert (status, reason) == expected
    if status == "False":
        assert "words" in message


async def test_an_api_that_nobody_serves_has_a_way_out(rig: Rig) -> None:
    await up(rig, "hpa")
    failed = condition("ScalingActive", "False", "FailedGetExternalMetric")
    set_conditions(rig.cluster, HPA, "chat", failed)
    await look(rig)
    assert "externalMetrics.enabled" in scaling(rig)[2]


async def test_what_the_operator_misses_is_told_by_name(rig: Rig) -> None:
    await up(rig, "hpa")
    report = ScalingReport(None, "False", "MetricsPartial", "pod a timed out")
    rig.world.record_scaling(CHAT, report)
    await rig.settle()
    assert scaling(rig) == ("False", "MetricsPartial", "pod a timed out")
    rig.world.record_scaling(CHAT, ScalingReport(None, "True", "Active", "all is read"))
    await rig.settle()
    assert scaling(rig)[:2] == ("True", "Active")


async def test_a_schedule_that_is_not_understood_is_told(rig: Rig) -> None:
    await up(rig, "hpa", schedules=[{"cron": "0 8 * * *", "minReplicas": 2, "timeZone": "Mars/X"}])
    status, reason, message = scaling(rig)
    assert (status, reason) == ("False", "InvalidSchedule")
    assert "Mars/X" in message
    behavior = rig.cluster.all(HPA)[0]["spec"]["behavior"]
    assert behavior["scaleDown"]["selectPolicy"] == "Disabled"


# ---- keda ----


async def test_keda_that_works_is_active(rig: Rig) -> None:
    await up(rig, "keda")
    assert scaling(rig)[:2] == ("True", "Active")
    wanted = rig.status(CHAT).scaling
    assert wanted is not None
    assert wanted.desired == 1, "of KEDA's HPA"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], ("Unknown", "Starting")),
        ([condition("Ready", "Unknown", "")], ("Unknown", "Starting")),
        (
            [condition("Ready", "Unknown", "PartialTriggerError")],
            ("False", "PartialTriggerError"),
        ),
        ([condition("Ready", "False", "TriggerError")], ("False", "TriggerError")),
        ([READY, condition("Fallback", "True", "FallbackExists")], ("False", "Fallback")),
        ([READY, condition("Fallback", "False", "NoFallbackFound")], ("True", "Active")),
        ([READY, condition("Paused", "True", "ScaledObjectPaused")], ("False", "Paused")),
    ],
)
async def test_what_keda_says(
    rig: Rig, told: list[dict[str, str]], expected: tuple[str, str]
) -> None:
    await up(rig, "keda")
    set_conditions(rig.cluster, SCALED_OBJECT, "chat", *told)
    await look(rig)
    status, reason, message = scaling(rig)
    assert (status, reason) == expected
    if status == "False":
        assert "words" in message


async def test_what_kedas_hpa_says(rig: Rig) -> None:
    await up(rig, "keda")
    failed = condition("ScalingActive", "False", "FailedGetExternalMetric")
    set_conditions(rig.cluster, HPA, "keda-hpa-chat", failed)
    await look(rig)
    status, reason, message = scaling(rig)
    assert (status, reason) == ("False", "FailedGetExternalMetric")
    assert message == "HorizontalPodAutoscaler keda-hpa-chat: words"


async def test_keda_has_nobody_to_ask() -> None:
    rig = Rig(keda_scaler=None)
    await up(rig, "keda")
    status, reason, message = scaling(rig)
    assert (status, reason) == ("False", "ScalerOff")
    assert "keda.externalScaler.enabled" in message
    assert rig.cluster.all(SCALED_OBJECT) == []


async def test_a_prometheus_needs_no_scaler_of_ours() -> None:
    rig = Rig(keda_scaler=None)
    await up(rig, "keda", keda={"prometheusServer": "http://prometheus:9090"})
    assert scaling(rig)[:2] == ("True", "Active")


async def test_with_a_prometheus_our_own_readings_are_not_the_matter(rig: Rig) -> None:
    await up(rig, "keda", keda={"prometheusServer": "http://prometheus:9090"})
    report = ScalingReport(None, "False", "MetricsPartial", "pod a timed out")
    rig.world.record_scaling(CHAT, report)
    await rig.settle()
    assert scaling(rig)[:2] == ("True", "Active")


async def test_without_a_gateway_nothing_sleeps_and_it_says_so(rig: Rig) -> None:
    await up(rig, "keda", idleSecondsToZero=60)
    status, reason, message = scaling(rig)
    assert (status, reason) == ("False", "NoGateway")
    assert "never below minReplicas, which is 1" in message
    rig.gateway("203.0.113.9")
    await look(rig)
    assert scaling(rig)[:2] == ("True", "Active")


async def test_asleep_without_a_gateway_says_the_way_out(rig: Rig) -> None:
    await up(rig, "keda", replicas=0, idleSecondsToZero=60)
    status, reason, message = scaling(rig)
    assert (status, reason) == ("False", "NoGateway")
    assert "set replicas to 1 or more" in message
