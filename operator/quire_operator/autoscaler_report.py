"""Condition `Scaling` of a service that an HPA or KEDA scales, in their own words. Pure.

Only what stands is told, no figure that moves: a condition is written when it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from quire_operator.autoscalers import PAUSED
from quire_operator.kinds import SCALED_OBJECT
from quire_operator.observe import Observation
from quire_operator.plan import keda_obstacle
from quire_operator.views import AutoscalerView, ConditionView

Told = tuple[Literal["True", "False", "Unknown"], str, str]
"""Status, reason and message of the condition."""
Rule = Callable[[Observation], Told | None]

STUCK_SECONDS = 30.0
"""KEDA takes its finalizer off within a second or two; after this it is not there."""


def told(seen: Observation, refusal: tuple[str, str] | None) -> Told | None:
    """`refusal`: reason and words of an autoscaler that the API server did not take. None for a
    service of another mode whose earlier autoscalers are gone."""
    found = _first(seen, _LEFT_OVER)
    if found is not None or seen.spec.scaling.mode not in ("hpa", "keda"):
        return found
    if refusal is not None:
        return ("False", *refusal)
    table = _HPA if seen.spec.scaling.mode == "hpa" else _KEDA
    found = _first(seen, (_schedules, _missing, *table))
    return found or ("True", "Active", f"{_name(_live(seen))} sets spec.replicas")


def _first(seen: Observation, rules: tuple[Rule, ...]) -> Told | None:
    return next((found for rule in rules if (found := rule(seen)) is not None), None)


# ---- both ----


def _stuck(seen: Observation) -> Told | None:
    """A ScaledObject whose finalizer nobody takes off."""
    for view in seen.autoscalers:
        waits = view.deleted is not None and seen.now - view.deleted >= STUCK_SECONDS
        if view.kind == SCALED_OBJECT.kind and waits:
            name, namespace = view.meta.name, view.meta.namespace
            return (
                "False",
                "ScaledObjectStuck",
                f"ScaledObject {name} is being deleted and KEDA does not let it go (its finalizer "
                "is still there), so nobody else may set replicas: start KEDA again, or run "
                f"kubectl patch scaledobject {name} -n {namespace} --type=merge "
                """-p '{"metadata":{"finalizers":null}}'""",
            )
    return None


def _leaving(seen: Observation) -> Told | None:
    leaving = [*seen.other_writers]
    if seen.autoscaler is not None and seen.autoscaler.meta.deleting:
        leaving.append(seen.autoscaler)
    if not leaving:
        return None
    what = ", ".join(sorted(_name(view) for view in leaving))
    return "Unknown", "Switching", f"{what} goes first, so that never two set spec.replicas"


def _schedules(seen: Observation) -> Told | None:
    errors = seen.minimum.errors
    if not errors:
        return None
    return "False", "InvalidSchedule", f"{'; '.join(errors)}. Not scaling down meanwhile"


def _missing(seen: Observation) -> Told | None:
    obstacle = keda_obstacle(seen)
    if obstacle is not None:
        return "False", "KedaMissing" if seen.keda_trouble else "ScalerOff", obstacle
    if seen.autoscaler is None:
        return "Unknown", "Starting", "the autoscaler is being made"
    return None


def _metrics(seen: Observation) -> Told | None:
    """What the operator itself misses, sooner and nearer to the cause than the autoscaler's."""
    report = seen.scaling.report if seen.scaling is not None else None
    if seen.spec.scaling.mode == "keda" and seen.spec.scaling.keda.prometheus_server is not None:
        return None
    if report is None or report.status != "False":
        return None
    return report.status, report.reason, report.message


# ---- hpa ----


def _hpa_paused(seen: Observation) -> Told | None:
    if seen.spec.replicas > 0:
        return None
    return "False", "Paused", "replicas is 0, which stops an HPA; set it to 1 or more"


def _hpa_conditions(seen: Observation) -> Told | None:
    view = _live(seen)
    if not view.conditions:
        return "Unknown", "Starting", f"{_name(view)} has not been looked at by its controller yet"
    bad = _bad(view)
    if bad is None:
        return None
    message = f"{_name(view)}: {bad.message}"
    if bad.reason == "FailedGetExternalMetric" and not seen.defaults.external_metrics:
        message += (
            ". The operator serves no external metrics: set the chart's externalMetrics.enabled, or"
            " have an adapter serve them (the chart's README has the rules)"
        )
    return "False", bad.reason or "Failed", message


def _hpa_limited(seen: Observation) -> Told | None:
    limited = _live(seen).condition("ScalingLimited")
    if limited is None or limited.status != "True" or limited.reason != "TooManyReplicas":
        return None
    most = seen.spec.scaling.max_replicas
    return "True", "AtMaxReplicas", f"The load asks for more than maxReplicas, which is {most}"


def _bad(view: AutoscalerView) -> ConditionView | None:
    """Of an HPA that cannot do its work; one that stands at 0 is but asleep."""
    for type_ in ("AbleToScale", "ScalingActive"):
        found = view.condition(type_)
        if found is not None and found.status == "False" and found.reason != "ScalingDisabled":
            return found
    return None


# ---- keda ----


def _keda_paused(seen: Observation) -> Told | None:
    if seen.limits.paused:
        words = "replicas is 0, so KEDA is told to pause; set it to 1 or more"
        return "False", "Paused", words
    paused = _live(seen).condition("Paused")
    if paused is None or paused.status != "True":
        return None
    return "False", "Paused", f"{_name(_live(seen))}: {paused.message} (annotation {PAUSED})"


def _keda_ready(seen: Observation) -> Told | None:
    view = _live(seen)
    ready = view.condition("Ready")
    if ready is None or (ready.status == "Unknown" and not ready.reason):
        return "Unknown", "Starting", f"KEDA has not looked at {_name(view)} yet"
    if ready.status == "True":
        return None
    return "False", ready.reason or "NotReady", f"{_name(view)}: {ready.message}"


def _keda_fallback(seen: Observation) -> Told | None:
    fallback = _live(seen).condition("Fallback")
    if fallback is None or fallback.status != "True":
        return None
    words = f"{_name(_live(seen))}: {fallback.message}; replicas stay at what they are"
    return "False", "Fallback", words


def _keda_hpa(seen: Observation) -> Told | None:
    bad = _bad(seen.keda_hpa) if seen.keda_hpa is not None else None
    if bad is None or seen.keda_hpa is None:
        return None
    return "False", bad.reason or "Failed", f"{_name(seen.keda_hpa)}: {bad.message}"


def _asleep(seen: Observation) -> Told | None:
    if seen.spec.replicas > 0:
        return None
    if not _has_gateway(seen):
        words = (
            "at zero replicas, and no gateway is ready to hold a request and wake the service; "
            "bring the gateway back, or set replicas to 1 or more"
        )
        return "False", "NoGateway", words
    return "True", "Asleep", "no request came for long enough; the next one wakes the service"


def _sleepless(seen: Observation) -> Told | None:
    idle = seen.spec.scaling.idle_seconds_to_zero
    if idle is None or _has_gateway(seen):
        return None
    return (
        "False",
        "NoGateway",
        f"idleSecondsToZero is {idle}, but no gateway is ready to hold requests: never below "
        f"minReplicas, which is {seen.minimum.replicas}; install quire's gateway, or unset "
        "idleSecondsToZero",
    )


def _has_gateway(seen: Observation) -> bool:
    return seen.gateway is not None and bool(seen.gateway.addresses)


_LEFT_OVER: tuple[Rule, ...] = (_stuck, _leaving)
LEFT_OVER_REASONS = frozenset({"ScaledObjectStuck", "Switching"})
"""Reasons of `_LEFT_OVER`: they end with the switch, whoever scales then."""
_HPA: tuple[Rule, ...] = (
    _hpa_paused,
    _metrics,
    _hpa_conditions,
    _hpa_limited,
)
_KEDA: tuple[Rule, ...] = (
    _keda_paused,
    _keda_ready,
    _asleep,
    _metrics,
    _keda_fallback,
    _keda_hpa,
    _sleepless,
)


def _live(seen: Observation) -> AutoscalerView:
    assert seen.autoscaler is not None  # `_missing` stands before
    return seen.autoscaler


def _name(view: AutoscalerView) -> str:
    return f"{view.kind} {view.meta.name}"
