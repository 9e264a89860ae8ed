"""Percentiles over a window: deltas, resets, buckets that differ, interpolation."""

import math
from bisect import bisect_left

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quire_operator.scaling_histogram import (
    Histogram,
    HistogramWindow,
    is_valid,
    merged,
    quantile,
)

INF = math.inf
BOUNDS = (0.1, 0.5, 1.0, INF)


def histogram(*counts: float) -> Histogram:
    return Histogram(BOUNDS, tuple(counts))


@pytest.mark.parametrize(
    ("fraction", "counts", "seconds"),
    [
        (0.95, (0, 0, 0, 0), None),
        (0.5, (10, 10, 10, 10), 0.05),  # from 0 in the first bucket
        (0.95, (0, 100, 100, 100), 0.48),
        (0.95, (90, 100, 100, 100), 0.3),
        (0.9, (90, 100, 100, 100), 0.1),  # the rank lies on a bucket's edge
        (0.95, (0, 0, 0, 10), 1.0),  # above the last finite bound: at least that
        (0.95, (0, 0, 19, 20), 1.0),
        (1.0, (1, 1, 2, 2), 1.0),
    ],
)
def test_quantiles_interpolate_within_a_bucket(
    fraction: float, counts: tuple[float, ...], seconds: float | None
) -> None:
    result = quantile(fraction, histogram(*counts))
    assert result == (None if seconds is None else pytest.approx(seconds))


@example([0.5, 0.5, 0.5], 1.0)
@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_observation_of_that_rank(
    observations: list[float], fraction: float
) -> None:
    counts = [sum(value <= bound for value in observations) for bound in BOUNDS]
    result = quantile(fraction, histogram(*counts))
    assert result is not None
    true = sorted(observations)[math.ceil(fraction * len(observations)) - 1]
    index = bisect_left(BOUNDS, true)
    lower = BOUNDS[index - 1] if index else 0.0
    assert lower <= result <= BOUNDS[index]


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [
        ((), ()),
        ((0.1, 0.5), (1, 2)),  # no +Inf
        ((0.5, 0.1, INF), (1, 2, 3)),
        ((0.1, 0.5, INF), (1, 3, 2)),  # falls
        ((0.1, INF), (-1, 2)),
        ((0.1, INF), (1, INF)),
        ((0.1, INF), (1, math.nan)),
        ((0.1, INF), (1,)),
    ],
)
def test_what_is_no_cumulative_histogram(
    bounds: tuple[float, ...], counts: tuple[float, ...]
) -> None:
    assert not is_valid(Histogram(bounds, counts))


def test_a_window_holds_what_came_within_it() -> None:
    window = HistogramWindow(60)
    assert window.recent() is None
    window.add(0, histogram(5, 5, 5, 5))
    assert window.recent() == histogram(0, 0, 0, 0)  # all of it may be older than the window
    window.add(30, histogram(5, 7, 7, 7))
    assert window.recent() == histogram(0, 2, 2, 2)
    window.add(60, histogram(5, 7, 8, 8))
    assert window.recent() == histogram(0, 2, 3, 3)
    window.add(90, histogram(5, 7, 8, 8))
    assert window.recent() == histogram(0, 0, 1, 1)
    window.add(200, histogram(5, 7, 8, 9))  # scrapes were lost: the deltas reach back further
    assert window.recent() == histogram(0, 0, 0, 1)


def test_after_a_restart_all_that_is_counted_is_new() -> None:
    window = HistogramWindow(60)
    window.add(0, histogram(50, 80, 100, 100))
    window.add(5, histogram(50, 90, 110, 110))
    window.add(10, histogram(1, 3, 3, 3))  # restarted
    assert window.recent() == histogram(1, 13, 13, 13)
    window.add(15, histogram(1, 3, 4, 4))
    assert window.recent() == histogram(1, 13, 14, 14)


def test_other_buckets_start_the_window_anew() -> None:
    window = HistogramWindow(60)
    window.add(0, histogram(1, 2, 3, 4))
    other = Histogram((0.2, INF), (50, 60))
    window.add(5, other)
    assert window.recent() == Histogram((0.2, INF), (0, 0))


steps = st.lists(
    st.one_of(st.none(), st.tuples(*[st.integers(0, 9)] * 4)), min_size=1, max_size=30
)  # None: the pod restarts


@given(steps)
def test_deltas_are_what_was_observed_however_often_the_pod_restarts(
    steps: list[tuple[int, ...] | None],
) -> None:
    """Exact as long as a restart shows, which it does when the count falls."""
    window = HistogramWindow(10_000)
    raw = [1000, 2000, 3000, 4000]
    window.add(0, histogram(*raw))
    observed = 0
    for time, step in enumerate(steps, start=1):
        if step is None:
            raw = [0, 0, 0, 0]
        else:
            raw = [count + sum(step[: i + 1]) for i, count in enumerate(raw)]
            observed += sum(step)
        window.add(time, histogram(*raw))
    recent = window.recent()
    assert recent is not None
    assert recent.total == observed
    assert is_valid(recent)


def test_pods_add_up_also_with_other_buckets() -> None:
    assert merged([]) is None
    assert merged([histogram(1, 2, 3, 4), histogram(1, 1, 1, 1)]) == histogram(2, 3, 4, 5)
    other = Histogram((0.5, 2.0, INF), (10, 20, 30))
    assert merged([histogram(1, 2, 3, 4), other]) == Histogram(
        (0.1, 0.5, 1.0, 2.0, INF), (1, 12, 13, 23, 34)
    )
