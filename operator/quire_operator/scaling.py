"""Decides how many replicas a service should have. Pure: no clock, no client, no kopf.

    observation + history -> decide() -> Decision;   history.after(...) -> the next round's history

The rules, in the order in which they are asked:

1.  `replicas: 0` is the user's off switch, unless idleSecondsToZero is set: then it is sleep, and
    an activation lifts it to minReplicas.
2.  Idle for idleSecondsToZero without a gap, and a gateway is there to hold the next request: to
    zero, all pods at once. Nothing has run on any of them for all that time, so a step by step
    would only keep what is known to be of no use. minReplicas holds while a service is awake.
3.  minReplicas, a schedule's included, and maxReplicas are the user's word and hold at once,
    without windows or step limits.
4.  No metrics, no change. Partial metrics may raise (a silent pod counts as idle), never lower.
5.  Up: the largest of the targets' ratios, times the ready pods, rounded up. At most double what is
    ready *now*, and at most maxStep more, so pods on their way are waited for instead of being
    ordered again. Unschedulable ones are not on their way.
6.  Down: at most maxStep replicas (default one), when for a whole window of gapless, complete
    metrics the load would have stayed inside every target on the ready ones among those that remain
    (load * N/(N-k), not load / N). Pods that are not ready leave first, and hold nothing up.
    Never while a schedule is not understood: nobody knows what minReplicas should be.

Hence any window holds at most one change of direction: a step down needs a full window in which no
more was wanted. A step up never waits for one; a burst after a step down is served.
"""

from quire_operator.scaling_history import History, Round
from quire_operator.scaling_load import Load, measure, pods_for
from quire_operator.scaling_model import (
    Decision,
    Inputs,
    Observation,
    PodLoad,
    Reason,
    ScalingConfig,
    Ttft,
)

__all__ = [
    "Decision",
    "History",
    "Inputs",
    "Observation",
    "PodLoad",
    "Reason",
    "ScalingConfig",
    "Ttft",
    "decide",
    "remember",
]

TOLERANCE = 0.1  # a ratio within 10 % of its target starts no pod; the HPA's own default
MAX_STEP_FACTOR = 2


def decide(config: ScalingConfig, history: History, observation: Observation) -> Decision:
    """One round for one service; see the module's docstring for the rules."""
    load = measure(config, observation)
    to, reason = _choose(config, history, observation, load)
    return Decision(
        time=observation.now,
        from_replicas=observation.replicas,
        to_replicas=to,
        reason=reason,
        inputs=load.inputs,
        need=load.need,
        complete=load.complete,
        idle=load.idle,
        dry_run=config.dry_run,
    )


def remember(
    config: ScalingConfig, history: History, decision: Decision, *, applied: bool
) -> History:
    """The history that the next round's `decide` wants. `applied`: spec.replicas was in fact moved
    (not in a dry run, not where another replica of the operator leads, not when refused)."""
    this = Round(
        time=decision.time,
        replicas=decision.to_replicas if applied else decision.from_replicas,
        ready=decision.inputs.ready,
        need=decision.need,
        complete=decision.complete,
        idle=decision.idle,
        changed=decision.changed and applied,
    )
    return history.after(this, config.windows)


def _choose(
    config: ScalingConfig, history: History, seen: Observation, load: Load
) -> tuple[int, Reason]:
    if seen.replicas == 0:
        return _from_zero(config, seen)
    is_idle = _is_idle(config, history, seen, load)
    if is_idle and seen.gateway_ready:
        return 0, Reason.IDLE
    bound = _bounds(config, seen.replicas)
    if bound is not None:
        return bound
    if seen.ready == 0:
        return seen.replicas, Reason.NO_READY_PODS
    if load.need is None:
        return seen.replicas, Reason.METRICS_MISSING
    if load.inputs.worst[1] > 1 + TOLERANCE:
        return _up(config, history, seen, load.inputs)
    if not load.complete:
        return seen.replicas, Reason.METRICS_PARTIAL
    to, reason = _down(config, history, seen, load.need)
    if is_idle and reason is Reason.INSIDE_TARGETS:
        return to, Reason.NO_GATEWAY
    return to, reason


def _from_zero(config: ScalingConfig, seen: Observation) -> tuple[int, Reason]:
    if config.idle_seconds_to_zero is None:
        return 0, Reason.PAUSED
    if seen.activated:
        return max(1, config.min_replicas), Reason.ACTIVATED
    return 0, Reason.ASLEEP if seen.gateway_ready else Reason.NO_GATEWAY


def _is_idle(config: ScalingConfig, history: History, seen: Observation, load: Load) -> bool:
    if config.idle_seconds_to_zero is None or config.schedule_errors or not load.idle:
        return False
    return history.idle_seconds(seen.now, config.gap_seconds) >= config.idle_seconds_to_zero


def _bounds(config: ScalingConfig, replicas: int) -> tuple[int, Reason] | None:
    if replicas < config.min_replicas:
        return config.min_replicas, Reason.BELOW_MINIMUM
    if replicas > config.max_replicas:
        return config.max_replicas, Reason.ABOVE_MAXIMUM
    return None


def _up(
    config: ScalingConfig, history: History, seen: Observation, inputs: Inputs
) -> tuple[int, Reason]:
    ratios = _ratios_that_raise(config, history, seen, inputs)
    if not ratios:
        return seen.replicas, Reason.PODS_PENDING if seen.on_their_way else Reason.STABILIZING
    reason, ratio = max(ratios.items(), key=lambda item: item[1])
    needed = pods_for(seen.ready, ratio)
    wanted = history.lowest_need(seen.now, config.up_window_seconds, needed)
    to = min(wanted, _step_up_limit(config, seen), config.max_replicas)
    if to <= max(seen.replicas, seen.ready + seen.on_their_way):
        return seen.replicas, _why_not_up(config, seen, wanted)
    if history.seen_seconds(seen.now, config.gap_seconds) < config.up_window_seconds:
        return seen.replicas, Reason.STABILIZING
    return to, reason


def _step_up_limit(config: ScalingConfig, seen: Observation) -> int:
    """Counted from what is ready: from spec.replicas, maxStep more would be ordered each round."""
    serving = min(seen.ready, seen.replicas)
    doubled = MAX_STEP_FACTOR * serving
    return doubled if config.max_up_step is None else min(doubled, serving + config.max_up_step)


def _ratios_that_raise(
    config: ScalingConfig, history: History, seen: Observation, inputs: Inputs
) -> dict[Reason, float]:
    """TTFT looks back: until a new pod is as old as that look, TTFT still speaks of the time before
    it came (and rises while it starts), and would order the same pods twice."""
    over = {name: ratio for name, ratio in inputs.known.items() if ratio > 1 + TOLERANCE}
    grew = history.ready_grew
    if seen.on_their_way or (grew is not None and seen.now - grew < config.settle_seconds):
        over.pop(Reason.TTFT, None)
    return over


def _why_not_up(config: ScalingConfig, seen: Observation, wanted: int) -> Reason:
    if wanted > config.max_replicas and seen.replicas >= config.max_replicas:
        return Reason.AT_MAXIMUM
    if seen.unschedulable:
        return Reason.PODS_UNSCHEDULABLE
    if seen.ready < seen.replicas or seen.on_their_way:
        return Reason.PODS_PENDING
    return Reason.STABILIZING


def _down(
    config: ScalingConfig, history: History, seen: Observation, need: int
) -> tuple[int, Reason]:
    serving = min(seen.replicas - 1, seen.ready)  # those that at best serve after any step down
    if seen.replicas <= config.min_replicas or need > serving:
        return seen.replicas, Reason.INSIDE_TARGETS
    if config.schedule_errors:
        return seen.replicas, Reason.INVALID_SCHEDULE
    highest = history.highest_need(seen.now, config.down_window_seconds, need)
    if highest > serving or not _may_step_down(config, history, seen):
        return seen.replicas, Reason.STABILIZING
    to = max(highest, config.min_replicas, seen.replicas - config.max_down_step)
    return to, Reason.LOAD_FITS_FEWER


def _may_step_down(config: ScalingConfig, history: History, seen: Observation) -> bool:
    """A whole window is known, the last step has shown its effect, and no other hand moved it."""
    if history.complete_seconds(seen.now, config.gap_seconds) < config.down_window_seconds:
        return False
    changed = history.changed_last
    if changed is not None and seen.now - changed < config.down_step_seconds:
        return False
    return history.replicas in (None, seen.replicas)
