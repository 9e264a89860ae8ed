"""What no load and no fault may make `decide` do: 10,000 random histories through a small model.

hypothesis draws a few bytes, a scenario; the test lives it (load, start-up times, nodes that are
full, silent pods, crashes, an operator that restarts, writes that are refused, another hand, a
gateway that goes) and judges every decision by what the model knows to be true.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_operator.scaling import (
    Decision,
    Observation,
    Reason,
    ScalingConfig,
    decide,
    remember,
)
from quire_operator.scaling_history import History
from quire_operator.testing_queueing import Service

pytestmark = pytest.mark.histories

NUM_HISTORIES = 10_000
INTERVAL = 5.0
UP_BY_LOAD = (Reason.QUEUE_DEPTH, Reason.TTFT, Reason.KV_CACHE)
ARRIVALS = (0, 0, 0, 1, 4, 15, 60, 250)  # a round
DONE = (1.0, 0.5, 0.2, 0.0)
FAULTS = (
    None, None, None, None, None, "silent", "dark", "no_ttft", "crash", "restart", "refused",
    "hand", "full", "rollout", "no_gateway", "activated", "schedule", "stall", "flash",
)  # fmt: skip


class Draw:
    """Bytes as choices; past their end the first of each."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def of(self, *choices):  # type: ignore[no-untyped-def]
        return choices[next(self._data, 0) % len(choices)]


@dataclass(frozen=True)
class Segment:
    """Some rounds of one load and one fault."""

    arrivals: int
    done: float
    fault: str | None
    rounds: int
    number: int


@dataclass(frozen=True)
class Scenario:
    config: ScalingConfig
    service: Service
    segments: tuple[Segment, ...]


def scenario(data: bytes) -> Scenario:
    draw = Draw(data)
    least, down = draw.of(1, 1, 2, 3), draw.of(30.0, 30.0, 0.0, 60.0)
    config = ScalingConfig(
        min_replicas=least,
        max_replicas=least + draw.of(0, 1, 4, 12, 24),
        queue_depth=draw.of(4, 1, 10),
        ttft_seconds=draw.of(None, 0.5, 2.0),
        kv_cache_utilization=draw.of(None, 0.9, 0.5),
        max_up_step=draw.of(None, None, 1, 3),
        max_down_step=draw.of(1, 2, 8),
        up_window_seconds=draw.of(0.0, 0.0, 15.0),
        down_window_seconds=down,
        down_step_seconds=min(10.0, down),
        settle_seconds=draw.of(15.0, 60.0),
        idle_seconds_to_zero=draw.of(None, 20.0, 60.0),
    )
    service = Service(
        slots=draw.of(4, 1, 16), rounds_to_start=draw.of(1, 3, 9), replicas=least, ready=least
    )
    segments = tuple(
        Segment(draw.of(*ARRIVALS), draw.of(*DONE), draw.of(*FAULTS), draw.of(4, 1, 8, 14), number)
        for number in range(draw.of(3, 4, 5, 6))
    )
    return Scenario(config, service, segments)


@dataclass
class Life:
    """One scenario, lived. Keeps what only the truth knows, apart from the scaler's own history."""

    scenario: Scenario
    service: Service = field(init=False)
    config: ScalingConfig = field(init=False)
    history: History = field(default_factory=History)
    now: float = 0.0
    told: list[float] = field(default_factory=list)  # rounds in which nothing was kept back
    busy: float = 0.0  # when there last was a request, or somebody who holds one
    needs: list[tuple[float, int]] = field(default_factory=list)  # of rounds that were told
    moves: list[tuple[float, int]] = field(default_factory=list)  # by load: when, and which way

    def __post_init__(self) -> None:
        self.service = replace(self.scenario.service, starting=[], draining=[], ttfts=[])
        self.config = self.scenario.config

    def rounds(self) -> Iterator[tuple[Observation, Decision, bool]]:
        for segment in self.scenario.segments:
            for index in range(segment.rounds):
                yield self._round(segment, first=index == 0)

    def _round(self, segment: Segment, first: bool) -> tuple[Observation, Decision, bool]:
        self.now += INTERVAL
        if first:
            self._strike(segment.fault, segment.number)
        fault, service = segment.fault, self.service
        service.room = 3 if fault == "full" else 64
        service.surge = 2 if fault == "rollout" else 0
        service.step(segment.arrivals, segment.done, flash=fault == "flash")
        if service.is_busy or service.unseen or fault == "activated":
            self.busy = self.now
        silent = {"silent": 1, "dark": 64}.get(fault or "", 0)
        seen = service.observe(
            self.now,
            silent=silent,
            no_ttft=fault == "no_ttft",
            activated=fault == "activated",
            gateway_ready=fault != "no_gateway",
        )
        self._note(seen)
        decision = decide(self.config, self.history, seen)
        applied = fault != "refused"
        self.history = remember(self.config, self.history, decision, applied=applied)
        if applied:
            service.replicas = decision.to_replicas
        return seen, decision, applied

    def _strike(self, fault: str | None, number: int) -> None:
        """What happens once, as a segment begins."""
        if fault == "crash":
            self.service.crash()
        elif fault == "restart":
            self.history = History()
            self.told.clear()
            self.service.unseen = self.service.ended
        elif fault == "hand":
            self.service.replicas = (0, 1, 7, 40)[number % 4]
        elif fault == "schedule":
            least = min(self.config.max_replicas, 1 + 2 * number)
            self.config = replace(self.config, min_replicas=least)
        elif fault == "stall":
            self.now += 40.0

    def _note(self, seen: Observation) -> None:
        everything = len(seen.loads) == seen.ready > 0 and not seen.doubtful
        if everything and (self.config.ttft_seconds is None or seen.ttft is not None):
            self.told.append(self.now)
            self.needs.append((self.now, self.service.need(self.config)))

    def was_told_for(self, seconds: float) -> bool:
        """Whether nothing was kept back from the scaler for so long, gaps of three rounds apart."""
        if not self.told or self.told[-1] != self.now:
            return False
        since = self.now
        for at in reversed(self.told):
            if since - at > self.config.gap_seconds:
                break
            since = at
        return self.now - since >= seconds

    def highest_need(self, seconds: float) -> int:
        return max(need for at, need in self.needs if at >= self.now - seconds)


def judge(life: Life, seen: Observation, decision: Decision, applied: bool) -> None:
    """Every promise, for one decision."""
    config, before, after = life.config, decision.from_replicas, decision.to_replicas
    assert after == 0 or config.min_replicas <= after <= config.max_replicas, "outside [min, max]"
    if after == before:
        return
    if after == 0:
        _judge_sleep(life, seen)
    elif decision.reason in UP_BY_LOAD:
        _judge_up(life, seen, before, after)
    elif decision.reason is Reason.LOAD_FITS_FEWER:
        _judge_down(life, seen, before, after)
    else:
        _judge_word(life, seen, decision)
        return
    if applied and after:
        life.moves.append((life.now, 1 if after > before else -1))
    _judge_directions(life)


def _judge_sleep(life: Life, seen: Observation) -> None:
    idle = life.config.idle_seconds_to_zero
    assert idle is not None, "asleep without idleSecondsToZero"
    assert seen.gateway_ready, "asleep without a gateway"
    assert life.now - life.busy >= idle, "asleep too soon after a request"
    assert life.was_told_for(idle), "asleep on missing data"


def _judge_up(life: Life, seen: Observation, before: int, after: int) -> None:
    assert after > before, "not a step up"
    serving = min(seen.ready, before)
    assert after <= 2 * serving, "more than doubled"
    step = life.config.max_up_step
    assert step is None or after <= serving + step, "more than maxStep at once"
    on_their_way = life.service.ready + life.service.on_their_way
    assert after > on_their_way, "ordered what was on its way"
    assert after <= life.service.need(life.config), "ordered more than the load takes"


def _judge_down(life: Life, seen: Observation, before: int, after: int) -> None:
    assert before - life.config.max_down_step <= after < before, "not a step down"
    window = life.config.down_window_seconds
    assert life.was_told_for(window), "down on missing data"
    remaining = min(after, seen.ready)
    assert life.highest_need(window) <= remaining, "the rest cannot hold the load"
    capacity = remaining * (life.service.slots + (life.config.queue_depth or 0))
    assert life.service.running + life.service.waiting <= capacity, "the rest has no seats"


def _judge_word(life: Life, seen: Observation, decision: Decision) -> None:
    """Somebody's word, which holds at once."""
    config, before, after = life.config, decision.from_replicas, decision.to_replicas
    if before == 0:
        assert config.idle_seconds_to_zero is not None, "a pause was lifted"
        assert seen.activated, "woken by nobody"
        assert after == config.min_replicas
    else:
        assert after == (config.min_replicas if after > before else config.max_replicas)


def _judge_directions(life: Life) -> None:
    window = life.config.down_window_seconds
    recent = [way for at, way in life.moves if at >= life.now - window]
    assert sum(a != b for a, b in pairwise(recent)) <= 1, "two changes of direction in a window"


@given(data=st.binary(min_size=38, max_size=38))
@settings(
    max_examples=NUM_HISTORIES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.timeout(600)
def test_what_no_history_may_do(data: bytes) -> None:
    life = Life(scenario(data))
    for seen, decision, applied in life.rounds():
        judge(life, seen, decision, applied)
    if life.service.ended % 2:
        meets_a_step_load(life)
    else:
        comes_down_again(life)


def meets_a_step_load(life: Life) -> None:
    """Whatever lies behind it, a load that comes to stay is met within three steps: `target` ready
    pods hold it with exactly queueDepth waiting on each."""
    start = max(1, life.service.ready % 5)
    target = start * (2 + life.service.ended // 2 % 7)
    config = replace(life.config, min_replicas=start, max_replicas=100, max_up_step=None)
    config = replace(config, ttft_seconds=None, kv_cache_utilization=None)
    slots, rounds_to_start = life.service.slots, min(3, life.service.rounds_to_start)
    service = Service(slots, rounds_to_start, replicas=start, ready=start)
    window_rounds = int(config.up_window_seconds / INTERVAL)
    steps = 0
    for index in range(window_rounds + 4 * (rounds_to_start + 3 + window_rounds)):
        if index == window_rounds:  # what was asked for earlier is over by then
            service.waiting = target * (slots + int(config.queue_depth or 0))
        life.now += INTERVAL
        service.step(arrivals=0, done=0.0)
        decision = decide(config, life.history, service.observe(life.now))
        life.history = remember(config, life.history, decision, applied=True)
        service.replicas = decision.to_replicas
        steps += decision.changed and service.ready < target
        if service.ready >= target:
            break
    assert service.ready >= target, "the load is not met"
    assert steps <= 3, "more than three steps"


def comes_down_again(life: Life) -> None:
    """Whatever lies behind it, an idle service comes down to its minimum, one window and some steps
    later, though no node takes the pods that are too many."""
    config = replace(life.config, max_replicas=life.config.min_replicas + 3)
    least, too_many = config.min_replicas, config.min_replicas + 3
    service = Service(replicas=too_many, ready=least, room=least, unschedulable=3)
    seconds = 2 * config.down_window_seconds + 3 * (config.down_step_seconds + INTERVAL) + 30
    for _ in range(int(seconds / INTERVAL)):
        life.now += INTERVAL
        service.step(arrivals=0, done=1.0)
        decision = decide(config, life.history, service.observe(life.now))
        life.history = remember(config, life.history, decision, applied=True)
        service.replicas = decision.to_replicas
        if service.replicas == least:
            return
    raise AssertionError("does not come down again")


def test_scenarios_are_not_all_alike() -> None:
    """The histories above must contain what they are to judge: each reason, and many rounds."""
    import random

    dice = random.Random(4)
    reasons: dict[Reason, int] = {}
    for _ in range(400):
        life = Life(scenario(dice.randbytes(38)))
        for _, decision, _ in life.rounds():
            reasons[decision.reason] = reasons.get(decision.reason, 0) + 1
    assert set(Reason) - set(reasons) == {Reason.INVALID_SCHEDULE}
    assert min(reasons.values()) >= 5, reasons
