"""Decides how many replicas a service should have. Pure: no clock, no client, no kopf.

    observation + history -> decide() -> Decision;   history.after(...) -> the next round's history

The rules, in the order in which they are asked:

1.  `replicas: 0` is the user's off switch; minReplicas and maxReplicas are the user's word and hold
    at once, without windows or step limits.
2.  No metrics, no change. Partial metrics may raise (a silent pod counts as idle), never lower.
3.  Up: the largest of the targets' ratios, times the ready pods, rounded up. At most double what is
    ready *now*, so pods that are still starting are waited for instead of being ordered again.
4.  Down: one replica, when for a whole window of gapless, complete metrics the load would have
    stayed inside every target on the replicas that remain (load * N/(N-1), not load / N).

Hence any window holds at most one change of direction: a step down needs a full window in which no
more was wanted. A step up never waits for one; a burst after a step down is served.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from quire_operator.scaling_history import History, Round, Windows

TOLERANCE = 0.1  # a ratio within 10 % of its target starts no pod; the HPA's own default
MAX_STEP_FACTOR = 2
_EPSILON = 1e-9  # 3 pods * (4.0 / 3) must not round up to 5


class Reason(StrEnum):
    """Why a decision came out as it did. The first six move replicas, the others hold them."""

    QUEUE_DEPTH = "QueueDepth"
    TTFT = "TimeToFirstToken"
    KV_CACHE = "KVCacheUtilization"
    LOAD_FITS_FEWER = "LoadFitsFewer"
    BELOW_MINIMUM = "BelowMinReplicas"
    ABOVE_MAXIMUM = "AboveMaxReplicas"

    INSIDE_TARGETS = "InsideTargets"
    AT_MAXIMUM = "AtMaxReplicas"
    PODS_PENDING = "PodsPending"
    PODS_UNSCHEDULABLE = "PodsUnschedulable"
    STABILIZING = "Stabilizing"
    METRICS_MISSING = "MetricsMissing"
    METRICS_PARTIAL = "MetricsPartial"
    NO_READY_PODS = "NoReadyPods"
    PAUSED = "Paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """What the service's owner asked for. A target of None is not looked at.

    queue_depth: waiting requests per ready replica; ttft_seconds: 95th percentile;
    kv_cache_utilization: mean over the pods, 0..1; slots: requests that a pod runs at once, for
    pods that do not say so themselves. Windows are seconds.
    """

    min_replicas: int = 1
    max_replicas: int = 4
    queue_depth: float | None = 4.0
    ttft_seconds: float | None = None
    kv_cache_utilization: float | None = 0.9
    slots: int | None = None
    up_window_seconds: float = 0.0
    down_window_seconds: float = 300.0
    down_step_seconds: float = 60.0  # from one step down to the next: its effect must be visible
    settle_seconds: float = 60.0  # TTFT looks back this far; a pod younger than that is not in it
    gap_seconds: float = 15.0  # a silence longer than this restarts the windows
    dry_run: bool = False

    @property
    def windows(self) -> Windows:
        return Windows(self.up_window_seconds, self.down_window_seconds, self.gap_seconds)


@dataclass(frozen=True, slots=True)
class PodLoad:
    """One ready pod's fresh metrics; None where its page lacks the metric.

    `slots`: the most requests that it runs at once, if known.
    """

    waiting: float | None
    running: float | None
    kv_cache_utilization: float | None
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class Ttft:
    """Time to first token over the window. `count` 0: nothing was asked, which is not missing."""

    p95_seconds: float
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One service as it is. `now`: seconds on any steady clock.

    replicas: spec.replicas; ready: pods that serve, draining ones apart; pending: pods on their
    way, not yet created ones included; unschedulable: pods that no node takes; loads: the ready
    pods that answered this round (silent, stale and nonsensical ones are simply not in it);
    ttft: None when it cannot be known.
    """

    now: float
    replicas: int
    ready: int
    pending: int = 0
    unschedulable: int = 0
    loads: tuple[PodLoad, ...] = ()
    ttft: Ttft | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The numbers behind a decision. A ratio above 1 is a target exceeded, None one not known."""

    ready: int
    pending: int
    unschedulable: int
    reporting: int
    waiting: float | None = None
    running: float | None = None
    kv_cache_utilization: float | None = None
    ttft_p95_seconds: float | None = None
    ratios: dict[Reason, float | None] = field(default_factory=dict)

    @property
    def known(self) -> dict[Reason, float]:
        return {name: ratio for name, ratio in self.ratios.items() if ratio is not None}

    @property
    def worst(self) -> tuple[Reason, float]:
        """The target that asks for most. Only with `known` not empty."""
        return max(self.known.items(), key=lambda item: item[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`time` is the observation's. `to_replicas` equals `from_replicas` when nothing changes.

    need: the fewest replicas that keep the load inside the targets, None when that is not known;
    complete: nothing was missing.
    """

    time: float
    from_replicas: int
    to_replicas: int
    reason: Reason
    inputs: Inputs
    need: int | None
    complete: bool
    dry_run: bool

    @property
    def changed(self) -> bool:
        return self.to_replicas != self.from_replicas

    @property
    def blindness(self) -> Reason | None:
        """What is wrong with the metrics, whatever was decided on the rest of them."""
        if self.complete or self.inputs.ready == 0 or self.reason is Reason.PAUSED:
            return None
        return Reason.METRICS_MISSING if self.need is None else Reason.METRICS_PARTIAL


def decide(config: ScalingConfig, history: History, observation: Observation) -> Decision:
    """One round for one service; see the module's docstring for the rules."""
    inputs = _inputs(config, observation)
    need = _need(config, observation, inputs)
    complete = _complete(observation, inputs)
    to, reason = _choose(config, history, observation, inputs, need, complete)
    return Decision(
        time=observation.now,
        from_replicas=observation.replicas,
        to_replicas=to,
        reason=reason,
        inputs=inputs,
        need=need,
        complete=complete,
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
        changed=decision.changed and applied,
    )
    return history.after(this, config.windows)


def _choose(
    config: ScalingConfig,
    history: History,
    seen: Observation,
    inputs: Inputs,
    need: int | None,
    complete: bool,
) -> tuple[int, Reason]:
    bound = _bounds(config, seen.replicas)
    if bound is not None:
        return bound
    if seen.ready == 0:
        return seen.replicas, Reason.NO_READY_PODS
    if need is None:
        return seen.replicas, Reason.METRICS_MISSING
    if inputs.worst[1] > 1 + TOLERANCE:
        return _up(config, history, seen, inputs)
    if not complete:
        return seen.replicas, Reason.METRICS_PARTIAL
    return _down(config, history, seen, need)


def _bounds(config: ScalingConfig, replicas: int) -> tuple[int, Reason] | None:
    if replicas == 0:
        return 0, Reason.PAUSED
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
        return seen.replicas, Reason.STABILIZING
    reason, ratio = max(ratios.items(), key=lambda item: item[1])
    wanted = history.lowest_need(seen.now, config.up_window_seconds, _ceil(seen.ready * ratio))
    limit = MAX_STEP_FACTOR * min(seen.ready, seen.replicas)
    to = min(wanted, limit, config.max_replicas)
    if to <= max(seen.replicas, seen.ready + seen.pending):
        return seen.replicas, _why_not_up(config, seen, wanted)
    if not _covered(history.seen_since, seen.now, config.up_window_seconds):
        return seen.replicas, Reason.STABILIZING
    return to, reason


def _ratios_that_raise(
    config: ScalingConfig, history: History, seen: Observation, inputs: Inputs
) -> dict[Reason, float]:
    """TTFT looks back: until a new pod is as old as that look, TTFT still speaks of the time before
    it came, and would order the same pods twice."""
    over = {name: ratio for name, ratio in inputs.known.items() if ratio > 1 + TOLERANCE}
    grew = history.ready_grew
    if grew is not None and seen.now - grew < config.settle_seconds:
        over.pop(Reason.TTFT, None)
    return over


def _why_not_up(config: ScalingConfig, seen: Observation, wanted: int) -> Reason:
    if wanted > config.max_replicas and seen.replicas >= config.max_replicas:
        return Reason.AT_MAXIMUM
    if seen.unschedulable:
        return Reason.PODS_UNSCHEDULABLE
    if seen.ready < seen.replicas or seen.pending:
        return Reason.PODS_PENDING
    return Reason.STABILIZING


def _down(
    config: ScalingConfig, history: History, seen: Observation, need: int
) -> tuple[int, Reason]:
    remaining = min(seen.replicas - 1, seen.ready)  # of those that stay, the ones that serve now
    if seen.replicas <= config.min_replicas or need > remaining:
        return seen.replicas, Reason.INSIDE_TARGETS
    if history.highest_need(seen.now, config.down_window_seconds, need) > remaining:
        return seen.replicas, Reason.STABILIZING
    if not _covered(history.complete_since, seen.now, config.down_window_seconds):
        return seen.replicas, Reason.STABILIZING
    changed = history.changed_last
    if changed is not None and seen.now - changed < config.down_step_seconds:
        return seen.replicas, Reason.STABILIZING
    if history.replicas not in (None, seen.replicas):
        return seen.replicas, Reason.STABILIZING  # another hand moved it just now
    return seen.replicas - 1, Reason.LOAD_FITS_FEWER


def _covered(since: float | None, now: float, window: float) -> bool:
    return window <= 0 or (since is not None and now - since >= window)


def _inputs(config: ScalingConfig, seen: Observation) -> Inputs:
    waiting = _sum([load.waiting for load in seen.loads])
    usage = _sum([load.kv_cache_utilization for load in seen.loads])
    mean_usage = None if usage is None or seen.ready == 0 else usage / seen.ready
    ttft = None if seen.ttft is None else seen.ttft.p95_seconds
    ratios: dict[Reason, float | None] = {}
    if config.queue_depth is not None:
        ratios[Reason.QUEUE_DEPTH] = _ratio(waiting, seen.ready * config.queue_depth)
    if config.ttft_seconds is not None:
        ratios[Reason.TTFT] = _ratio(ttft, config.ttft_seconds)
    if config.kv_cache_utilization is not None:
        ratios[Reason.KV_CACHE] = _ratio(mean_usage, config.kv_cache_utilization)
    return Inputs(
        ready=seen.ready,
        pending=seen.pending,
        unschedulable=seen.unschedulable,
        reporting=len(seen.loads),
        waiting=waiting,
        running=_sum([load.running for load in seen.loads]),
        kv_cache_utilization=mean_usage,
        ttft_p95_seconds=ttft,
        ratios=ratios,
    )


def _need(config: ScalingConfig, seen: Observation, inputs: Inputs) -> int | None:
    """The fewest replicas on which today's load stays inside every known target, at least 1."""
    if not inputs.known or not seen.loads or seen.ready == 0:
        return None
    by_ratio = _ceil(seen.ready * inputs.worst[1])
    return max(1, by_ratio, _need_for_slots(config, seen, inputs))


def _need_for_slots(config: ScalingConfig, seen: Observation, inputs: Inputs) -> int:
    """Full pods have no queue, yet without one of them its running requests are the others' queue:
    n * (slots + queue_depth) >= running + waiting."""
    known = [load.slots or config.slots for load in seen.loads]
    slots = [count for count in known if count is not None]
    if not slots or config.queue_depth is None or inputs.running is None:
        return 0
    return _ceil((inputs.running + (inputs.waiting or 0)) / (min(slots) + config.queue_depth))


def _complete(seen: Observation, inputs: Inputs) -> bool:
    """Every ready pod answered, with every metric that a target wants."""
    if seen.ready == 0 or len(seen.loads) < seen.ready or None in inputs.ratios.values():
        return False
    return not any(_lacks(load, inputs) for load in seen.loads)


def _lacks(load: PodLoad, inputs: Inputs) -> bool:
    return (Reason.QUEUE_DEPTH in inputs.ratios and load.waiting is None) or (
        Reason.KV_CACHE in inputs.ratios and load.kv_cache_utilization is None
    )


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _ratio(value: float | None, target: float) -> float | None:
    return None if value is None or target <= 0 else value / target


def _ceil(value: float) -> int:
    return math.ceil(value - _EPSILON)
