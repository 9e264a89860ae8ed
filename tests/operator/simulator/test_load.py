"""Arrivals and lengths: their rates, their shapes, and that the seed decides them."""

from itertools import pairwise
from random import Random
from statistics import fmean, median, quantiles
from typing import Any

import pytest

from quire_operator.simulator.load import drawn, rate, sample
from quire_operator.simulator.scenario import (
    ConstantPhase,
    Exponential,
    LogNormal,
    RampPhase,
    SinePhase,
    Uniform,
)
from quire_operator.simulator.scenario_file import decode

SINE = {
    "kind": "sine",
    "durationSeconds": 4000,
    "meanPerSecond": 5,
    "amplitudePerSecond": 4,
    "periodSeconds": 4000,
}


def moments(raw: dict[str, Any], *phases: dict[str, Any], seed: int = 1) -> list[float]:
    changed = {**raw, "seed": seed, "durationSeconds": 4000, "load": {"phases": list(phases)}}
    return [arrival.seconds for arrival in drawn(decode(changed))]


def between(times: list[float], start: float, end: float) -> int:
    return sum(start <= time < end for time in times)


def test_a_constant_rate_is_a_poisson_process(raw: dict[str, Any]) -> None:
    times = moments(raw, {"kind": "constant", "durationSeconds": 4000, "perSecond": 5})
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gap**2 for gap in gaps) / fmean(gaps) ** 2 == pytest.approx(2, rel=0.1)


def test_a_ramp_and_a_sine_follow_their_rates(raw: dict[str, Any]) -> None:
    ramp = {"kind": "ramp", "durationSeconds": 4000, "fromPerSecond": 0, "toPerSecond": 10}
    times = moments(raw, ramp)
    assert between(times, 0, 1000) == pytest.approx(1250, rel=0.1)
    assert between(times, 3000, 4000) == pytest.approx(8750, rel=0.1)
    times = moments(raw, SINE)
    assert times == sorted(times)
    assert between(times, 0, 200) == pytest.approx(200, rel=0.25)  # it begins at its lowest
    assert between(times, 1900, 2100) == pytest.approx(1800, rel=0.1)


def test_a_burst_has_so_many_requests_within_its_time(raw: dict[str, Any]) -> None:
    burst = {"kind": "burst", "startSeconds": 50, "durationSeconds": 10, "requests": 300}
    times = moments(raw, burst)
    assert (len(times), between(times, 50, 60)) == (300, 300)


def test_phases_add_up_and_end_with_the_scenario(raw: dict[str, Any]) -> None:
    one = {"kind": "constant", "durationSeconds": 9000, "perSecond": 1}
    two = {"kind": "constant", "startSeconds": 2000, "durationSeconds": 1000, "perSecond": 4}
    times = moments(raw, one, two)
    assert between(times, 0, 2000) == pytest.approx(2000, rel=0.1)
    assert between(times, 2000, 3000) == pytest.approx(5000, rel=0.1)
    assert max(times) < 4000


def test_rates_at_a_moment() -> None:
    assert rate(ConstantPhase(duration_seconds=9, per_second=3), 4) == 3
    assert rate(RampPhase(duration_seconds=10, from_per_second=2, to_per_second=4), 5) == 3
    sine = SinePhase(
        duration_seconds=9, mean_per_second=5, amplitude_per_second=4, period_seconds=60
    )
    assert (rate(sine, 0), rate(sine, 30)) == pytest.approx((1, 9))


def test_the_seed_decides(raw: dict[str, Any]) -> None:
    assert moments(raw, SINE) == moments(raw, SINE)
    assert moments(raw, SINE) != moments(raw, SINE, seed=2)


def test_lengths_change_nobodys_moment(raw: dict[str, Any]) -> None:
    plain = drawn(decode(raw))
    raw["load"]["lengths"] = {"prompt": {"kind": "exponential", "mean": 9}}
    assert [arrival.seconds for arrival in drawn(decode(raw))] == [a.seconds for a in plain]


def test_distributions() -> None:
    random = Random(3)
    values = sorted(sample(LogNormal(median=100, p95=400), random) for _ in range(20_000))
    assert median(values) == pytest.approx(100, rel=0.05)
    assert quantiles(values, n=20)[-1] == pytest.approx(400, rel=0.05)
    cut = [sample(LogNormal(median=100, p95=400, max=500), random) for _ in range(2000)]
    assert max(cut) == 500
    assert fmean(sample(Exponential(mean=7), random) for _ in range(20_000)) == pytest.approx(
        7, rel=0.05
    )
    evenly = [sample(Uniform(min=2, max=4), random) for _ in range(2000)]
    assert 2 <= min(evenly) < 2.1
    assert 3.9 < max(evenly) <= 4
    assert sample(5.0, random) == 5.0
