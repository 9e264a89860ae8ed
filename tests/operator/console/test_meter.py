"""Rates and percentiles from pages of several moments."""

import pytest

from quire_operator.console.meter import Answers, Figures, Meter, Page
from quire_operator.names import Key
from quire_operator.scraper import GENERATED, Missing, PodMetrics, parse, total
from quire_operator.testing_console import metrics_page

ONE, TWO = Key("default", "chat-0"), Key("default", "chat-1")


def page(**values: float) -> Page:
    body = metrics_page(**values)
    metrics = parse(body)
    assert isinstance(metrics, PodMetrics)
    return Page(metrics, total(body, GENERATED))


def run(*rounds: Answers, seconds: float = 2.0) -> Figures:
    """The figures of both pods after these rounds, so many seconds apart."""
    meter = Meter()
    for index, answers in enumerate(rounds):
        meter.hear(index * seconds, answers)
    return meter.figures(rounds[-1], [ONE, TWO])


def test_one_round_knows_the_load_and_no_rate() -> None:
    found = run({ONE: page(running=2, waiting=1, kv=0.5), TWO: page(running=1, waiting=4, kv=0.1)})
    assert (found.running, found.waiting) == (3, 5)
    assert found.kv_cache_utilization == pytest.approx(0.3)
    assert (found.tokens_per_second, found.ttft_p95_seconds) == (None, None)


def test_tokens_a_second_are_those_between_the_last_two_rounds() -> None:
    found = run(
        {ONE: page(tokens=0), TWO: page(tokens=500)},
        {ONE: page(tokens=1000), TWO: page(tokens=500)},
        {ONE: page(tokens=1100), TWO: page(tokens=540)},
    )
    assert found.tokens_per_second == pytest.approx(70)


def test_a_process_that_began_anew_gives_no_rate_for_one_round() -> None:
    first, anew, later = (page(tokens=count) for count in (1000, 10, 50))
    assert run({ONE: first}, {ONE: anew}).tokens_per_second is None
    assert run({ONE: first}, {ONE: anew}, {ONE: later}).tokens_per_second == pytest.approx(20)


def test_a_pod_says_when_its_page_was_made() -> None:
    """Two looks 2 s apart may show pages 4 s apart; or the same one twice."""
    meter = Meter()
    for now, made, tokens in ((0.0, 100.0, 0), (2.0, 104.0, 400)):
        body = metrics_page(tokens=tokens) + f"quire_metrics_time_seconds {made}\n".encode()
        metrics = parse(body)
        assert isinstance(metrics, PodMetrics)
        answers: Answers = {ONE: Page(metrics, total(body, GENERATED))}
        meter.hear(now, answers)
    assert meter.figures(answers, [ONE]).tokens_per_second == pytest.approx(100)
    meter.hear(4.0, answers)
    assert meter.figures(answers, [ONE]).tokens_per_second is None


def test_p95_is_of_what_came_since_the_first_look() -> None:
    slow = {"ttft_0.1": 0.0, "ttft_10": 1000.0}
    before = page(**slow)
    after = page(**{"ttft_0.1": 100.0, "ttft_10": 1100.0})
    assert run({ONE: before}).ttft_p95_seconds is None
    found = run({ONE: before}, {ONE: after}).ttft_p95_seconds
    assert found is not None
    assert found <= 0.1, "what was slow before anybody looked does not count"


def test_p95_forgets_what_is_older_than_a_minute() -> None:
    meter = Meter()
    rounds = [(0.0, 0, 0), (2.0, 0, 50), (70.0, 0, 50), (72.0, 10, 60)]
    for now, quick, all_ in rounds:
        answers: Answers = {ONE: page(**{"ttft_0.1": float(quick), "ttft_10": float(all_)})}
        meter.hear(now, answers)
    found = meter.figures(answers, [ONE]).ttft_p95_seconds
    assert found is not None
    assert found <= 0.1


def test_a_silent_pod_is_named_and_the_others_count() -> None:
    silent = Missing("did not answer within 2 s")
    found = run({ONE: page(tokens=0), TWO: silent}, {ONE: page(tokens=20), TWO: silent})
    assert found.silent == ((TWO.name, "did not answer within 2 s"),)
    assert found.tokens_per_second == pytest.approx(10)
    assert found.running == 2


def test_no_pod_at_all_is_no_number() -> None:
    found = run({})
    assert (found.running, found.waiting, found.kv_cache_utilization) == (None, None, None)


def test_who_is_not_asked_any_more_is_forgotten() -> None:
    """A pod that comes back is compared with nothing."""
    assert run({ONE: page(tokens=0)}, {}, {ONE: page(tokens=900)}).tokens_per_second is None
