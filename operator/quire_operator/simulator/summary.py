"""What a simulation amounts to, in numbers: printed by the CLI, and as JSON with --json."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from quire_operator.simulator.engine_model import Outcome, Request
from quire_operator.simulator.simulation import Change, Record, Sample

LOOK_BACK_SECONDS = 60.0
"""How far a moment's p95 looks back; the scaler's own window at its default interval."""


class _Numbers(Struct, frozen=True, rename="camel", kw_only=True):
    """Base: camelCase in the JSON."""


class Requests(_Numbers, frozen=True):
    """By outcome; they add up to `total`."""

    total: int
    answered: int
    refused: int
    too_long: int
    cut: int
    unfinished: int


class Ttft(_Numbers, frozen=True):
    """Seconds from a client's request to its first token; None when no token came at all."""

    p50: float | None
    p95: float | None
    p99: float | None


class ScaleEvent(_Numbers, frozen=True):
    """One change of spec.replicas."""

    seconds: float
    before: int
    after: int
    why: str


class Summary(_Numbers, frozen=True):
    """share_above_target: of the requests that should have had a first token by the end, those that
    had none within targets.ttftSeconds; None without that target. seconds_above_target: with any
    target exceeded. replica_hours: of pods that held a node. direction_changes: an up after a down
    or the reverse. seconds_by_condition: what the condition Scaling said, for how long."""

    requests: Requests
    ttft_seconds: Ttft
    share_above_target: float | None
    seconds_above_target: float
    replica_hours: float
    highest_replicas: int
    max_queue: int
    scale_events: int
    direction_changes: int
    reasons: dict[str, int]
    seconds_by_condition: dict[str, float]
    events: list[ScaleEvent]


def summarize(record: Record) -> Summary:
    """Every number is over the whole scenario."""
    scenario, samples, changes = record.scenario, record.samples, record.changes
    interval = scenario.interval_seconds
    ttfts = sorted(t for request in record.requests if (t := request.ttft_seconds) is not None)
    above = sum(
        _exceeds(record, sample, p95)
        for sample, p95 in zip(samples, ttft_p95_over_time(record), strict=True)
    )
    conditions = Counter(sample.reason for sample in samples)
    return Summary(
        requests=_outcomes(record.requests),
        ttft_seconds=Ttft(
            p50=percentile(0.5, ttfts), p95=percentile(0.95, ttfts), p99=percentile(0.99, ttfts)
        ),
        share_above_target=_share_above(record),
        seconds_above_target=above * interval,
        replica_hours=sum(sample.on_nodes for sample in samples[:-1]) * interval / 3600,
        highest_replicas=max(sample.replicas for sample in samples),
        max_queue=max(sample.queue for sample in samples),
        scale_events=len(changes),
        direction_changes=direction_changes(changes),
        reasons=dict(Counter(change.reason for change in changes).most_common()),
        seconds_by_condition={
            reason: count * interval for reason, count in conditions.most_common()
        },
        events=[
            ScaleEvent(seconds=each.seconds, before=each.before, after=each.after, why=each.why)
            for each in changes
        ],
    )


def percentile(fraction: float, ordered: Sequence[float]) -> float | None:
    """The smallest value that so many do not exceed. None of nothing."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else None


def direction_changes(changes: Sequence[Change]) -> int:
    ups = [change.after > change.before for change in changes]
    return sum(now != then for then, now in pairwise(ups))


def ttft_p95_over_time(record: Record) -> list[float | None]:
    """At each sample, of the first tokens of the last minute; None when there was none."""
    tokens = sorted(
        (request.first_token, request.first_token - request.arrived)
        for request in record.requests
        if request.first_token is not None
    )
    times = [time for time, _ttft in tokens]
    found: list[float | None] = []
    for sample in record.samples:
        since = bisect_left(times, sample.seconds - LOOK_BACK_SECONDS)
        until = bisect_right(times, sample.seconds)
        found.append(percentile(0.95, sorted(ttft for _time, ttft in tokens[since:until])))
    return found


def _exceeds(record: Record, sample: Sample, ttft_p95: float | None) -> bool:
    targets = record.scenario.scaling.targets
    ttft, usage = targets.ttft_seconds, targets.kv_cache_utilization
    return (
        sample.queue > targets.queue_depth * sample.ready
        or (ttft is not None and ttft_p95 is not None and ttft_p95 > ttft)
        or (usage is not None and sample.kv_utilization > usage)
    )


def _share_above(record: Record) -> float | None:
    target = record.scenario.scaling.targets.ttft_seconds
    if target is None:
        return None
    ended = record.scenario.duration_seconds
    due = [r for r in record.requests if r.ttft_seconds is not None or r.arrived + target < ended]
    late = sum(r.ttft_seconds is None or r.ttft_seconds > target for r in due)
    return late / len(due) if due else 0.0


def _outcomes(requests: Sequence[Request]) -> Requests:
    counts = Counter(request.outcome for request in requests)
    return Requests(
        total=len(requests),
        answered=counts[Outcome.ANSWERED],
        refused=counts[Outcome.REFUSED],
        too_long=counts[Outcome.TOO_LONG],
        cut=counts[Outcome.CUT],
        unfinished=counts[Outcome.UNFINISHED],
    )


def text(summary: Summary) -> str:
    """A screen for a person: the numbers, then each change of replicas."""
    width = max(len(name) for name, _value in _lines(summary))
    lines = [f"{name:<{width}}  {value}" for name, value in _lines(summary)]
    lines += ["", "  second  replicas  why"]
    lines += [f"{e.seconds:8g}  {e.before:>3} -> {e.after:<3} {e.why}" for e in summary.events]
    return "\n".join(lines)


def _lines(summary: Summary) -> list[tuple[str, str]]:
    replicas = f"up to {summary.highest_replicas}, {summary.replica_hours:.2f} replica-hours"
    changes = f"{summary.scale_events}, {summary.direction_changes} of direction"
    said = summary.seconds_by_condition.items()
    return [
        ("requests", _requests_line(summary.requests)),
        ("time to first token", _ttft_line(summary)),
        ("a target exceeded", f"{summary.seconds_above_target:g} s"),
        ("longest queue", f"{summary.max_queue} requests"),
        ("replicas", replicas),
        ("changes", "; ".join([changes, *_counts(summary.reasons)])),
        ("condition Scaling", ", ".join(f"{name} {seconds:g} s" for name, seconds in said)),
    ]


def _ttft_line(summary: Summary) -> str:
    ttft, share = summary.ttft_seconds, summary.share_above_target
    late = "no target" if share is None else f"{share:.1%} later than the target"
    return f"p50 {_s(ttft.p50)}, p95 {_s(ttft.p95)}, p99 {_s(ttft.p99)}; {late}"


def _requests_line(requests: Requests) -> str:
    others = {
        "refused": requests.refused,
        "too long": requests.too_long,
        "cut": requests.cut,
        "unfinished": requests.unfinished,
    }
    listed = [f"{count} {name}" for name, count in others.items() if count]
    return ", ".join([f"{requests.total}", f"{requests.answered} answered", *listed])


def _counts(counts: dict[str, int]) -> list[str]:
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [listed] if listed else []


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g} s"
