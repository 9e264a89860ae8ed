"""Draws a scenario's requests: when they come and how long they are."""

from __future__ import annotations

import math
from random import Random
from typing import Annotated

from msgspec import Meta, Struct

from quire_operator.simulator.scenario import (
    BurstPhase,
    ConstantPhase,
    Distribution,
    Exponential,
    LogNormal,
    Phase,
    RampPhase,
    Scenario,
    Uniform,
)

_Z95 = 1.6448536269514722  # the standard normal's 95th percentile


class Arrival(Struct, frozen=True):
    """One request; `seconds` from the scenario's start."""

    seconds: Annotated[float, Meta(ge=0)]
    prompt_tokens: Annotated[int, Meta(ge=1)]
    answer_tokens: Annotated[int, Meta(ge=1)]


def stream(scenario: Scenario, name: str) -> Random:
    """Chance for one purpose, so that another pod more does not change who comes when."""
    return Random(f"{scenario.seed}/{name}")  # noqa: S311 -- to be repeatable is its purpose


def drawn(scenario: Scenario) -> list[Arrival]:
    """The phases' requests within the scenario's duration, in order of arrival."""
    times, lengths = stream(scenario, "arrivals"), stream(scenario, "lengths")
    moments = sorted(
        moment
        for phase in scenario.load.phases
        for moment in _moments(phase, times)
        if moment < scenario.duration_seconds
    )
    prompt, answer = scenario.load.lengths.prompt, scenario.load.lengths.answer
    return [
        Arrival(moment, _tokens(sample(prompt, lengths)), _tokens(sample(answer, lengths)))
        for moment in moments
    ]


def sample(distribution: Distribution, random: Random) -> float:
    """One value of it."""
    match distribution:
        case Uniform(min=low, max=high):
            return random.uniform(low, high)
        case Exponential(mean=mean, max=limit):
            return min(random.expovariate(1 / mean), limit or math.inf)
        case LogNormal(median=median, p95=p95, max=limit):
            sigma = math.log(p95 / median) / _Z95
            return min(median * math.exp(random.gauss(0.0, sigma)), limit or math.inf)
        case _:
            return distribution


def rate(phase: Phase, since: float) -> float:
    """Requests a second, `since` seconds after the phase's start; not of a burst."""
    match phase:
        case ConstantPhase(per_second=per_second):
            return per_second
        case RampPhase(from_per_second=low, to_per_second=high, duration_seconds=duration):
            return low + (high - low) * since / duration
        case BurstPhase(requests=requests, duration_seconds=duration):
            return requests / duration
        case _:
            turn = 2 * math.pi * since / phase.period_seconds
            return phase.mean_per_second - phase.amplitude_per_second * math.cos(turn)


def _moments(phase: Phase, random: Random) -> list[float]:
    if isinstance(phase, BurstPhase):
        spread = (random.random() * phase.duration_seconds for _ in range(phase.requests))
        return [phase.start_seconds + since for since in spread]
    return [phase.start_seconds + since for since in _thinned(phase, random)]


def _thinned(phase: Phase, random: Random) -> list[float]:
    """A Poisson process whose rate varies (Lewis and Shedler): drawn at the highest rate, and each
    kept with the part of it that holds then."""
    highest = _highest_rate(phase)
    kept: list[float] = []
    since = random.expovariate(highest) if highest > 0 else math.inf
    while since < phase.duration_seconds:
        if random.random() * highest < rate(phase, since):
            kept.append(since)
        since += random.expovariate(highest)
    return kept


def _highest_rate(phase: Phase) -> float:
    match phase:
        case ConstantPhase(per_second=per_second):
            return per_second
        case RampPhase(from_per_second=low, to_per_second=high):
            return max(low, high)
        case BurstPhase():
            return rate(phase, 0.0)
        case _:
            return phase.mean_per_second + phase.amplitude_per_second


def _tokens(value: float) -> int:
    return max(1, round(value))
