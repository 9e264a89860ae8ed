"""What an observation says of a service's load: ratios, the replicas it needs, what is missing.

Pure. A ratio is load over target: 1 is a target just met, and `ready * ratio` replicas would meet
it. So the need of N ready pods is at once the consolidation check for any number that remains.
"""

import math
from dataclasses import dataclass

from quire_operator.scaling_model import Inputs, Observation, PodLoad, Reason, ScalingConfig

SEATS_TAKEN = 0.8  # at most, after a step down: full pods are one arrival from a step up again
_EPSILON = 1e-9  # 3 pods * (4.0 / 3) must not round up to 5


@dataclass(frozen=True, slots=True)
class Load:
    """need: the fewest replicas that keep the load inside every known target, at least 1, None when
    no pod gave a number; complete: every ready pod gave all that the service's targets want; idle:
    no request runs, waits, came since the last round or is held; None when that is not known."""

    inputs: Inputs
    need: int | None
    complete: bool
    idle: bool | None


def measure(config: ScalingConfig, seen: Observation) -> Load:
    inputs = _inputs(config, seen)
    complete = _complete(config, seen, inputs)
    return Load(inputs, _need(config, seen, inputs), complete, _idle(seen, complete))


def pods_for(ready: int, ratio: float) -> int:
    """Replicas that bring a ratio measured on `ready` of them down to 1."""
    return _ceil(ready * ratio)


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
        starting=seen.starting,
        pending=seen.pending,
        unschedulable=seen.unschedulable,
        draining=seen.draining,
        reporting=len(seen.loads),
        waiting=waiting,
        running=_sum([load.running for load in seen.loads]),
        kv_cache_utilization=mean_usage,
        ttft_p95_seconds=ttft,
        arrivals=_sum([load.arrivals for load in seen.loads]),
        ratios=ratios,
    )


def _need(config: ScalingConfig, seen: Observation, inputs: Inputs) -> int | None:
    if not inputs.known or not seen.loads or seen.ready == 0:
        return None
    by_ratio = pods_for(seen.ready, inputs.worst[1])
    return max(1, by_ratio, _need_for_slots(config, seen, inputs))


def _need_for_slots(config: ScalingConfig, seen: Observation, inputs: Inputs) -> int:
    """Full pods have no queue, yet without one of them its running requests are the others' queue.
    Those that remain must hold all of today's requests, with seats to spare."""
    known = [load.slots or config.slots for load in seen.loads]
    slots = [count for count in known if count is not None]
    if not slots or inputs.running is None:
        return 0
    return _ceil((inputs.running + (inputs.waiting or 0)) / (SEATS_TAKEN * min(slots)))


def _complete(config: ScalingConfig, seen: Observation, inputs: Inputs) -> bool:
    if seen.ready == 0 or len(seen.loads) < seen.ready or None in inputs.ratios.values():
        return False
    return not seen.doubtful and not any(_lacks(config, load) for load in seen.loads)


def _lacks(config: ScalingConfig, load: PodLoad) -> bool:
    may_sleep = config.idle_seconds_to_zero is not None
    return (
        ((config.queue_depth is not None or may_sleep) and load.waiting is None)
        or (config.kv_cache_utilization is not None and load.kv_cache_utilization is None)
        or (may_sleep and (load.running is None or load.arrivals is None))
    )


def _idle(seen: Observation, complete: bool) -> bool | None:
    if seen.activated or any(load.is_busy for load in seen.loads):
        return False
    return True if complete else None


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _ratio(value: float | None, target: float) -> float | None:
    return None if value is None or target <= 0 else value / target


def _ceil(value: float) -> int:
    return math.ceil(value - _EPSILON)
