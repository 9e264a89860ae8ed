"""Percentiles of the recent past from histograms that only ever grow. Pure: time comes in.

Prometheus histograms count since the process started. What the scaler wants is the last minute, so
each pod's counts are kept for a window and subtracted; a pod that restarted counts from 0 again,
which is seen as a count that fell, and then all that it shows is new.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts at rising upper bounds (seconds); the last bound is infinity."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.counts[-1]

    def at(self, bound: float) -> float:
        """Observations at or below `bound`; between own bounds, those at the lower one."""
        index = bisect_right(self.bounds, bound)
        return self.counts[index - 1] if index else 0.0


def is_valid(histogram: Histogram) -> bool:
    """Rising bounds up to infinity, counts that are finite, not negative and never fall."""
    bounds, counts = histogram.bounds, histogram.counts
    return (
        len(bounds) == len(counts) > 0
        and bounds[-1] == float("inf")
        and all(low < high for low, high in pairwise(bounds))
        and all(low <= high for low, high in pairwise(counts))
        and counts[0] >= 0
        and counts[-1] < float("inf")
    )


class HistogramWindow:
    """One pod's histogram over the last `seconds`: `add` each scrape, read `recent`.

    Holds one snapshot a scrape, made monotonic across restarts of the pod.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._raw: Histogram | None = None
        self._snapshots: deque[tuple[float, Histogram]] = deque()

    def add(self, time: float, scraped: Histogram) -> None:
        """`time` is in seconds and never goes back."""
        if self._raw is None or self._raw.bounds != scraped.bounds:
            self._snapshots.clear()  # other buckets: another engine, nothing to subtract from
            grown = scraped
        else:
            grown = _grown(self._snapshots[-1][1], self._raw, scraped)
        self._raw = scraped
        self._snapshots.append((time, grown))
        while len(self._snapshots) > 2 and self._snapshots[1][0] <= time - self._seconds:
            self._snapshots.popleft()  # the head stays the last one at or before the window

    def recent(self) -> Histogram | None:
        """What was observed within the window; None before anything was scraped."""
        if not self._snapshots:
            return None
        first, last = self._snapshots[0][1], self._snapshots[-1][1]
        counts = tuple(b - a for a, b in zip(first.counts, last.counts, strict=True))
        return Histogram(last.bounds, counts)


def _grown(sum_before: Histogram, raw_before: Histogram, raw: Histogram) -> Histogram:
    if raw.counts == raw_before.counts:
        return sum_before
    was_reset = any(now < then for then, now in zip(raw_before.counts, raw.counts, strict=True))
    base = (0.0,) * len(raw.counts) if was_reset else raw_before.counts
    counts = tuple(
        total + now - then
        for total, now, then in zip(sum_before.counts, raw.counts, base, strict=True)
    )
    return Histogram(raw.bounds, counts)


def merged(histograms: Iterable[Histogram]) -> Histogram | None:
    """The sum over pods. Pods with other buckets are counted at the union of all bounds."""
    parts = list(histograms)
    if not parts:
        return None
    bounds = parts[0].bounds
    if all(part.bounds == bounds for part in parts):
        sums = tuple(map(sum, zip(*(part.counts for part in parts), strict=True)))
        return Histogram(bounds, sums)
    union = tuple(sorted({bound for part in parts for bound in part.bounds}))
    return Histogram(union, tuple(sum(part.at(bound) for part in parts) for bound in union))


def quantile(fraction: float, histogram: Histogram) -> float | None:
    """Seconds below which `fraction` of the observations lie, as Prometheus' histogram_quantile:
    linear within a bucket, the last finite bound for what lies above it. None without any."""
    if histogram.total <= 0:
        return None
    rank = fraction * histogram.total
    index = next(i for i, count in enumerate(histogram.counts) if count >= rank)
    lower = histogram.bounds[index - 1] if index else 0.0
    upper = histogram.bounds[index]
    if upper == float("inf"):
        return lower
    below = histogram.counts[index - 1] if index else 0.0
    inside = histogram.counts[index] - below
    if not inside:
        return upper
    return min(upper, lower + (upper - lower) * (rank - below) / inside)  # rounding may overshoot
