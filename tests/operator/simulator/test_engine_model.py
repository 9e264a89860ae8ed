"""The queueing model against what queueing theory knows, and against its own bookkeeping."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.api.metrics import TTFT_BUCKETS
from quire_operator.simulator.engine_model import (
    TTFT_BOUNDS,
    EngineModel,
    Outcome,
    Request,
    StepTimes,
)
from quire_operator.simulator.scenario import Engine


def engine(**changes: object) -> Engine:
    """One seat, steps of a millisecond, prompts for nothing."""
    plain = {
        "prefill_tokens_per_second": 1e9,
        "decode_step_seconds": {1: 0.001},
        "max_num_seqs": 1,
        "kv_tokens": 10**9,
        "startup_seconds": 1.0,
    }
    return Engine(**{**plain, **changes})  # type: ignore[arg-type]


def served(model: EngineModel, requests: list[Request]) -> list[Request]:
    """All of them, to the end."""
    for request in requests:
        model.advance(request.arrived)
        model.accept(request, request.arrived)
    model.advance(math.inf if not requests else requests[-1].arrived + 1e6)
    return requests


def poisson(rate: float, num: int, answers: Callable[[Random], float]) -> list[Request]:
    """Requests at random moments; `answers` says how many tokens each wants."""
    random, now = Random(7), 0.0
    requests = []
    for _ in range(num):
        now += random.expovariate(rate)
        requests.append(Request(now, 1, max(1, round(answers(random)))))
    return requests


def mean_wait(requests: list[Request]) -> float:
    """From arrival to the start of service: the first token comes one step after it."""
    waits = [request.ttft_seconds for request in requests]
    assert None not in waits
    return sum(wait for wait in waits if wait is not None) / len(waits) - 0.001


def erlang_c_wait(servers: int, load: float, service_seconds: float) -> float:
    """Mean wait in an M/M/c queue; `load` in erlangs."""
    below = sum(load**k / math.factorial(k) for k in range(servers))
    top = load**servers / math.factorial(servers) / (1 - load / servers)
    return top / (below + top) * service_seconds / (servers - load)


def exact_wait(requests: list[Request], servers: int) -> float:
    """The mean wait of these very requests, each served by the server that is free first."""
    free, total = [0.0] * servers, 0.0
    for request in requests:
        start = max(request.arrived, heappop(free))
        total += start - request.arrived
        heappush(free, start + request.answer_tokens / 1000)
    return total / len(requests)


def exponential(random: Random) -> float:
    """Answers of 1,000 tokens in the mean: one second."""
    return random.expovariate(1 / 1000)


def test_one_seat_is_mm1() -> None:
    """Mean wait: rho / (mu - lambda)."""
    requests = served(EngineModel(engine(), 0.0), poisson(0.5, 20_000, exponential))
    assert mean_wait(requests) == pytest.approx(0.5 / (1 - 0.5), rel=0.08)


def test_equal_answers_wait_half_as_long() -> None:
    """M/D/1: rho / 2 (mu - lambda)."""
    requests = served(EngineModel(engine(), 0.0), poisson(0.5, 20_000, lambda _random: 1000))
    assert mean_wait(requests) == pytest.approx(0.5 / (2 * (1 - 0.5)), rel=0.08)


def test_seats_are_servers_when_steps_do_not_slow_down() -> None:
    """M/M/c, Erlang's C formula."""
    model = EngineModel(engine(max_num_seqs=4), 0.0)
    requests = served(model, poisson(2.8, 20_000, exponential))
    assert mean_wait(requests) == pytest.approx(erlang_c_wait(4, 2.8, 1.0), rel=0.15)


@pytest.mark.parametrize(("seats", "rate"), [(1, 0.9), (3, 2.7), (8, 7.6)])
def test_near_saturation_as_an_exact_queue_of_the_same_requests(seats: int, rate: float) -> None:
    """No mean over long runs is needed: both serve the same requests. A step is a millisecond."""
    requests = poisson(rate, 3000, exponential)
    served(EngineModel(engine(max_num_seqs=seats), 0.0), requests)
    assert mean_wait(requests) == pytest.approx(exact_wait(requests, seats), abs=0.01)


def test_a_request_alone_takes_prompt_plus_steps() -> None:
    request = Request(5.0, 400, 11)
    model = EngineModel(
        engine(prefill_tokens_per_second=1000, decode_step_seconds={1: 0.02}), now=0.0
    )
    served(model, [request])
    assert request.ttft_seconds == pytest.approx(0.4 + 0.02)
    assert request.finished == pytest.approx(5.0 + 0.4 + 0.02 + 10 * 0.02)
    assert request.outcome is Outcome.ANSWERED


def test_a_long_prompt_takes_several_steps_and_decodes_go_on_beside_it() -> None:
    model = EngineModel(
        engine(
            max_num_seqs=2,
            tokens_per_step=100,
            prefill_tokens_per_second=1000,
            decode_step_seconds={1: 0.02},
        ),
        now=0.0,
    )
    short, long = Request(0.0, 100, 4), Request(0.0, 250, 1)
    served(model, [short, long])
    # short: its prompt fills the first step. long: 99 tokens beside a decode, 99 more, the last 52.
    assert short.first_token == pytest.approx(0.12)
    assert short.finished == pytest.approx(0.12 + 0.119 + 0.119 + 0.072)
    assert long.first_token == pytest.approx(0.12 + 0.119 + 0.119 + 0.072)


def test_steps_grow_with_the_batch() -> None:
    times = StepTimes({1: 0.02, 9: 0.04, 17: 0.08})
    assert [times(n) for n in (1, 5, 9, 13, 17)] == pytest.approx([0.02, 0.03, 0.04, 0.06, 0.08])
    assert times(25) == pytest.approx(0.12)  # beyond what was measured: the last slope
    assert StepTimes({8: 0.03})(64) == 0.03


def test_the_same_however_often_it_is_looked_at() -> None:
    """Steps taken together end when steps taken one by one do."""
    requests = [poisson(30, 2000, lambda random: random.expovariate(1 / 50)) for _ in range(2)]
    rules = engine(max_num_seqs=8, decode_step_seconds={1: 0.002, 8: 0.005}, kv_tokens=600)
    seldom, often = EngineModel(rules, 0.0), EngineModel(rules, 0.0)
    served(seldom, requests[0])
    for request in requests[1]:
        while often._time < request.arrived - 0.01:
            often.advance(often._time + 0.01)
        often.advance(request.arrived)
        often.accept(request, request.arrived)
    often.advance(1e6)
    assert seldom.num_preemptions > 0
    first, second = ([request.finished for request in each] for each in requests)
    assert first == pytest.approx(second)


def test_a_full_cache_preempts_the_last_one_and_loses_nothing() -> None:
    model = EngineModel(engine(max_num_seqs=4, kv_tokens=100), now=0.0)
    requests = [Request(0.0, 20, 40) for _ in range(4)]
    served(model, requests)
    assert model.num_preemptions > 0
    assert [request.outcome for request in requests] == [Outcome.ANSWERED] * 4
    ends = [request.finished or 0.0 for request in requests]
    assert ends == sorted(ends)
    assert model.kv_utilization == 0


def test_what_can_never_fit_is_refused() -> None:
    model = EngineModel(engine(kv_tokens=100), now=0.0)
    request = Request(0.0, 61, 40)
    served(model, [request])
    assert request.outcome is Outcome.TOO_LONG


def test_a_crash_cuts_all_that_is_in_flight() -> None:
    model = EngineModel(engine(max_num_seqs=2), now=0.0)
    requests = [Request(0.0, 10, 1000) for _ in range(3)]
    for request in requests:
        model.accept(request, 0.0)
    model.advance(0.5)
    assert (model.num_running, model.num_waiting) == (2, 1)
    model.abort()
    model.check_integrity()
    assert model.in_flight == 0
    assert {request.outcome for request in requests} == {Outcome.CUT}


def test_buckets_are_the_engines() -> None:
    assert (*TTFT_BUCKETS, math.inf) == TTFT_BOUNDS


LOADS = st.lists(
    st.tuples(
        st.floats(0, 0.5),  # since the one before
        st.integers(1, 120),  # prompt
        st.integers(1, 60),  # answer
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(LOADS, st.integers(1, 6), st.integers(16, 300), st.integers(6, 200), st.floats(0, 0.3))
def test_no_request_is_lost_and_no_token_miscounted(
    load: list[tuple[float, int, int]], seats: int, kv_tokens: int, budget: int, look: float
) -> None:
    model = EngineModel(
        engine(
            max_num_seqs=seats,
            kv_tokens=kv_tokens,
            tokens_per_step=budget,
            prefill_tokens_per_second=2000,
            decode_step_seconds={1: 0.01, 6: 0.02},
        ),
        now=0.0,
    )
    now, requests = 0.0, []
    for since, prompt, answer in load:
        now += since
        model.advance(now)
        requests.append(Request(now, prompt, answer))
        model.accept(requests[-1], now)
        now += look
        model.advance(now)
        model.check_integrity()
    model.advance(now + 1e5)
    model.check_integrity()
    assert model.in_flight == 0
    for request in requests:
        fits = request.prompt_tokens + request.answer_tokens <= kv_tokens
        assert request.outcome is (Outcome.ANSWERED if fits else Outcome.TOO_LONG)
        if fits:
            assert request.first_token is not None
            assert request.finished is not None
            assert request.arrived < request.first_token <= request.finished
    answered = [request for request in requests if request.outcome is Outcome.ANSWERED]
    assert model.num_generated_tokens == sum(request.answer_tokens for request in answered)
    assert sum(model.ttft_counts) == len(answered) == model.num_finished
