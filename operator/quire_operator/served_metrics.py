"""The metrics by which HPAs and KEDA scale a service: names, targets, permitted answers. Pure.

A reading that is missing, partial or old is never answered with a number: an autoscaler takes a
number for the load, and less load for a reason to shrink. It gets an error, and holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quire_operator.api import Spec
from quire_operator.errors import QuireError
from quire_operator.names import Key
from quire_operator.readings import Reading, Readings

QUEUE_DEPTH = "quire_queue_depth"
"""Requests that wait, summed over the ready pods."""
TTFT_P95 = "quire_ttft_p95_seconds"
"""95th percentile of the time to the first token over the last minute, 0 without traffic."""
KV_CACHE = "quire_kv_cache_utilization"
"""Used part of the KV cache, 0 to 1, mean over the ready pods."""

STALE_INTERVALS = 3
"""Scrape intervals after which a reading is too old to be answered."""


class NoReading(QuireError):
    """There is no number that may be answered; the message says why, without figures that move (an
    HPA copies it into its status each 15 s)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one replica may carry of one metric."""

    metric: str
    value: float
    type: Literal["AverageValue", "Value"]
    """AverageValue: the metric is a sum, divided by the replicas. Value: compared as it is."""


_VALUES: dict[str, Callable[[Reading], float | None]] = {
    QUEUE_DEPTH: lambda reading: reading.waiting,
    TTFT_P95: lambda reading: reading.ttft_p95_seconds,
    KV_CACHE: lambda reading: reading.kv_cache_utilization,
}
METRICS = tuple(_VALUES)


def targets(spec: Spec) -> tuple[Target, ...]:
    """The targets that are set, in the order of `METRICS`."""
    wanted = spec.scaling.targets
    found = [Target(QUEUE_DEPTH, float(wanted.queue_depth), "AverageValue")]
    if wanted.ttft_seconds is not None:
        found.append(Target(TTFT_P95, wanted.ttft_seconds, "Value"))
    if wanted.kv_cache_utilization is not None:
        found.append(Target(KV_CACHE, wanted.kv_cache_utilization, "Value"))
    return tuple(found)


def fresh(readings: Readings, key: Key, now: float, interval_seconds: float) -> Reading:
    """The service's last reading, complete and not older than three rounds. Raises NoReading."""
    reading = _recent(readings, key, now, interval_seconds)
    if not reading.complete:
        raise _incomplete(key, reading)
    return reading


def _recent(readings: Readings, key: Key, now: float, interval_seconds: float) -> Reading:
    reading = readings.get(key)
    if reading is None:
        raise NoReading(f"{key}: its pods have not been read yet")
    if now - reading.at > STALE_INTERVALS * interval_seconds:
        raise NoReading(f"{key}: the last reading of its pods is too old")
    return reading


def _incomplete(key: Key, reading: Reading) -> NoReading:
    otherwise = "a target's metric is missing" if reading.ready else "no pod is ready"
    why = "; ".join(reading.missing[:3]) or otherwise
    return NoReading(f"{key}: the reading of its pods is not complete: {why}")


def value(
    readings: Readings, key: Key, metric: str, now: float, interval_seconds: float
) -> tuple[float, Reading]:
    """One metric of one service, and the reading it is from. Raises NoReading."""
    reading = _recent(readings, key, now, interval_seconds)
    if not (reading.complete or (reading.loads_complete and metric != TTFT_P95)):
        raise _incomplete(key, reading)
    found = _VALUES[metric](reading)
    if found is None:
        raise NoReading(f"{key}: its pods have no {metric}")
    return found, reading


def quantity(number: float) -> str:
    """A Kubernetes quantity to the thousandth, in the form that the API server keeps."""
    whole, milli = divmod(round(number * 1000), 1000)
    return f"{whole * 1000 + milli}m" if milli else str(whole)
