"""How reasons of the resource itself and of its scaler are found: rules of `reasons.py`. Pure."""

from __future__ import annotations

from quire_operator import autoscaler_report, route
from quire_operator.case import Case, Rule
from quire_operator.fetch import Stage

NO_METRICS = frozenset(
    {
        "MetricsMissing",
        "MetricsPartial",
        "FailedGetExternalMetric",
        "FailedGetResourceMetric",
        "Fallback",
    }
)
"""Reasons of condition Scaling: of our scaler, of HPAs, of KEDA."""
QUIET = frozenset({"NoReadyPods", "Paused", "OtherAutoscaler", "Switching"})
"""Reasons of Scaling=False that are no trouble of the service's."""


def invalid_spec(case: Case) -> str | None:
    return case.seen.service.error


def invalid_pod_template(case: Case) -> str | None:
    return case.plan.refusal


def problem(reason: str) -> Rule:
    """The rule of what an apply ran into."""

    def found(case: Case) -> str | None:
        met = (p.message for p in case.problems if p.reason == reason and not p.of_scaling)
        return next(met, None)

    return found


def scaled_to_zero(case: Case) -> str | None:
    fetches = case.seen.spec.cache.prefetch and case.fetch.stage is not Stage.COMPLETE
    if case.seen.spec.replicas > 0 or (fetches and case.seen.fetches):
        return None
    return route.words(case.seen)


# ---- the scaler ----


def no_metrics(case: Case) -> str | None:
    told = _scaling_trouble(case)
    return told[1] if told is not None and told[0] in NO_METRICS else None


def scaling_failed(case: Case) -> str | None:
    told = _scaling_trouble(case)
    return f"{told[0]}: {told[1]}" if told is not None and told[0] not in NO_METRICS else None


def _scaling_trouble(case: Case) -> tuple[str, str] | None:
    """Reason and message of Scaling while it is False and a person has to mend it."""
    told = scaling(case)
    if told is None or told[0] != "False" or told[1] in QUIET:
        return None
    return told[1], told[2]


def scaling(case: Case) -> autoscaler_report.Told | None:
    """What the scaler says; until it has said something in this process, what it said before."""
    refused = [(p.reason, p.message) for p in case.problems if p.of_scaling]
    told = autoscaler_report.told(case.seen, refused[0] if refused else None)
    if told is not None or case.seen.spec.scaling.mode != "builtin":
        return told
    if case.seen.scaling is not None:
        report = case.seen.scaling.report
        return report.status, report.reason, report.message
    return _said_before(case)


def _said_before(case: Case) -> autoscaler_report.Told | None:
    """Of this spec, and not of a switch that has ended."""
    service = case.seen.service
    for condition in service.status.conditions:
        left_over = condition.reason in autoscaler_report.LEFT_OVER_REASONS
        current = condition.observed_generation == service.generation
        if condition.type == "Scaling" and current and not left_over:
            return condition.status, condition.reason, condition.message
    return None
