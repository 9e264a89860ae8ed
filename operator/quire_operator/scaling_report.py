"""Puts a decision into words: condition `Scaling`, status.scaling and the log. Pure.

The words of the condition carry no live numbers: they change when the situation does, not with
every scrape, so that a busy service costs no status write a round.
"""

from typing import Literal

from quire_operator.api import ScalingDecision
from quire_operator.readings import Reading
from quire_operator.scaling import Decision, Inputs, Reason, ScalingConfig
from quire_operator.world import ScalingReport

ConditionStatus = Literal["True", "False", "Unknown"]


def report(
    config: ScalingConfig, decision: Decision, missing: tuple[str, ...], recorded: str | None
) -> ScalingReport:
    """missing: one sentence for each pod that gave nothing; recorded: the wall-clock time
    (RFC 3339) of a change that is to be kept in status, None for none."""
    status, reason, message = _condition(config, decision, missing)
    kept = None
    if recorded is not None:
        kept = ScalingDecision(
            time=recorded,
            from_replicas=decision.from_replicas,
            to_replicas=decision.to_replicas,
            reason=sentence(config, decision),
            inputs=inputs_text(decision),
        )
    return ScalingReport(decision.to_replicas, status, reason, message, kept)


def refused(decision: Decision, error: str) -> ScalingReport:
    """The API server did not take the new number."""
    wanted = f"{decision.from_replicas} to {decision.to_replicas} replicas"
    return ScalingReport(
        decision.to_replicas, "False", "ScaleRefused", f"Cannot scale from {wanted}: {error}"
    )


def not_alone(other: str) -> ScalingReport:
    """An autoscaler of the service still exists, which may write replicas too."""
    message = (
        f"{other} still exists and may set replicas; the operator's scaler waits until it is gone"
    )
    return ScalingReport(None, "False", "OtherAutoscaler", message)


def passed_on(reading: Reading) -> ScalingReport:
    """Whether an HPA or KEDA gets a number from us."""
    if reading.complete or reading.ready == 0:
        return ScalingReport(None, "True", "Active", "The operator reads every ready pod")
    reason = Reason.METRICS_MISSING if reading.waiting is None else Reason.METRICS_PARTIAL
    missing = "; ".join(reading.missing[:3]) or "a target's metric is missing"
    message = f"{missing}. The autoscaler is told so, and does not shrink"
    return ScalingReport(None, "False", reason, message)


def _condition(
    config: ScalingConfig, decision: Decision, missing: tuple[str, ...]
) -> tuple[ConditionStatus, str, str]:
    reason = decision.reason
    if decision.blindness is not None:
        return "False", decision.blindness, _missing_sentence(config, decision, missing)
    if config.schedule_errors:
        words = "; ".join(config.schedule_errors)
        return "False", Reason.INVALID_SCHEDULE, f"{words}. Not scaling down until it is corrected"
    goes_to_sleep = reason is Reason.IDLE and not config.dry_run
    if goes_to_sleep or reason in (Reason.ASLEEP, Reason.NO_GATEWAY):
        return _at_rest(config, decision)
    if reason is Reason.NO_READY_PODS:
        return "False", reason, "No pod is ready, so there is no load to measure"
    if reason is Reason.PAUSED:
        return "False", reason, "replicas is 0, which stops the scaler; set it to 1 or more"
    if reason is Reason.AT_MAXIMUM:
        limit = config.max_replicas
        return "True", reason, f"The load asks for more than maxReplicas, which is {limit}"
    if reason is Reason.PODS_UNSCHEDULABLE:
        return "True", reason, "More replicas are wanted, but no node takes the pods that wait"
    if config.dry_run:
        return "True", "DryRun", "Decisions are recorded in status.scaling and not followed"
    return "True", "Active", "The scaler reads every ready pod and sets spec.replicas"


def _at_rest(config: ScalingConfig, decision: Decision) -> tuple[ConditionStatus, str, str]:
    idle = f"No request for {config.idle_seconds_to_zero:g} s"
    if decision.reason is not Reason.NO_GATEWAY:
        return (
            "True",
            Reason.ASLEEP,
            f"{idle}: no pod is kept; the gateway holds the next and wakes",
        )
    if decision.from_replicas:
        return (
            "False",
            decision.reason,
            f"{idle}, but no gateway is ready to hold the next one: not below minReplicas, "
            f"which is {config.min_replicas}; install quire's gateway, or unset idleSecondsToZero",
        )
    return (
        "False",
        decision.reason,
        "At zero replicas, and no gateway is ready to hold a request and wake the service; "
        "bring the gateway back, or set replicas to 1 or more",
    )


def _missing_sentence(config: ScalingConfig, decision: Decision, missing: tuple[str, ...]) -> str:
    inputs = decision.inputs
    unknown = sorted(str(name) for name, ratio in inputs.ratios.items() if ratio is None)
    if config.idle_seconds_to_zero is not None and inputs.arrivals is None:
        unknown.append("requests ended")
    parts = [f"{inputs.reporting} of {inputs.ready} ready pods gave metrics"]
    if unknown and inputs.reporting:
        parts.append(f"no data for {', '.join(unknown)}")
    parts.extend(missing[:3])
    if len(missing) > 3:
        parts.append(f"{len(missing) - 3} more")
    return "; ".join(parts) + f". Not scaling down below {decision.from_replicas} replicas"


def sentence(config: ScalingConfig, decision: Decision) -> str:
    """Why the decision came out as it did, with its numbers."""
    words = _why(config, decision)
    return f"{decision.reason}: {words}" + (" (dry run)" if decision.dry_run else "")


def _why(config: ScalingConfig, decision: Decision) -> str:
    inputs = decision.inputs
    match decision.reason:
        case Reason.QUEUE_DEPTH:
            each = (inputs.waiting or 0) / max(1, inputs.ready)
            pods = "1 ready pod" if inputs.ready == 1 else f"{inputs.ready} ready pods"
            words = (
                f"{_figure(inputs.waiting)} requests wait on {pods}, "
                f"{each:.3g} each; the target is {_figure(config.queue_depth)}"
            )
        case Reason.TTFT:
            words = (
                f"p95 time to first token is {_figure(inputs.ttft_p95_seconds)} s; "
                f"the target is {_figure(config.ttft_seconds)} s"
            )
        case Reason.KV_CACHE:
            words = (
                f"{_figure(inputs.kv_cache_utilization)} of the KV cache is used; "
                f"the target is {_figure(config.kv_cache_utilization)}"
            )
        case Reason.LOAD_FITS_FEWER:
            return (
                f"for {config.down_window_seconds:g} s the load would have stayed inside the "
                f"targets on {decision.to_replicas} of {decision.from_replicas} replicas"
            )
        case Reason.BELOW_MINIMUM:
            return _minimum(config)
        case Reason.ABOVE_MAXIMUM:
            return f"maxReplicas is {config.max_replicas}"
        case Reason.IDLE:
            return f"no request for {config.idle_seconds_to_zero:g} s"
        case Reason.ACTIVATED:
            return f"requests are held for it; {_minimum(config)}"
        case _:
            return f"stays at {decision.from_replicas}"
    return f"{words}; {decision.need} replicas would hold it" + _limited(config, decision)


def _minimum(config: ScalingConfig) -> str:
    said = f"minReplicas is {config.min_replicas}"
    return said if config.schedule is None else f"{said} by the schedule {config.schedule}"


def _limited(config: ScalingConfig, decision: Decision) -> str:
    need = decision.need or 0
    if decision.to_replicas >= need:
        return ""
    if decision.to_replicas == config.max_replicas:
        return f", maxReplicas allows {config.max_replicas}"
    step = decision.to_replicas - decision.from_replicas
    if step == config.max_up_step:
        return f", scaleUp.maxStep allows {step} more at once"
    return f", one step at most doubles the ready pods, to {decision.to_replicas}"


def inputs_text(decision: Decision) -> dict[str, str]:
    """Every number behind the decision; what is not known is left out."""
    inputs = decision.inputs
    values: dict[str, float | None] = {
        "ready": inputs.ready,
        "starting": inputs.starting,
        "pending": inputs.pending,
        "unschedulable": inputs.unschedulable,
        "draining": inputs.draining,
        "reporting": inputs.reporting,
        "need": decision.need,
        "waiting": inputs.waiting,
        "running": inputs.running,
        "kvCacheUtilization": inputs.kv_cache_utilization,
        "ttftP95Seconds": inputs.ttft_p95_seconds,
        "arrivals": inputs.arrivals,
        **_ratios(inputs),
    }
    return {name: _figure(value) for name, value in values.items() if value is not None}


def _ratios(inputs: Inputs) -> dict[str, float | None]:
    return {f"ratio{name}": ratio for name, ratio in inputs.ratios.items()}


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
