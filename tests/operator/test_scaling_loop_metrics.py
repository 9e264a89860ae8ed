"""The loop where pods say little, nothing or nonsense: told, and never a reason to shrink."""

from dataclasses import replace

import pytest

from quire_operator.scaling import PodLoad
from quire_operator.scaling_histogram import Histogram
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.testing_scaling import CHAT, IDLE, INTERVAL, bench, spec


async def test_silent_pods_are_named_from_the_second_round_and_forgotten_when_they_answer() -> None:
    world = bench(minReplicas=2)
    world.fleet.replicas[CHAT] = 2
    world.answers["chat-1"] = Missing("did not answer within 3 s")
    await world.rounds(1)
    assert world.fleet.reports == []
    await world.rounds(1)
    assert (world.last.status, world.last.reason) == ("False", "MetricsPartial")
    assert world.last.message == (
        "1 of 2 ready pods gave metrics; pod chat-1 did not answer within 3 s. "
        "Not scaling down below 2 replicas"
    )
    world.answers["chat-0"] = Missing("answered 500")
    await world.rounds(1)
    assert world.last.reason == "MetricsMissing"
    world.answers.clear()
    await world.rounds(1)
    assert (world.last.status, world.last.reason) == ("True", "Active")


async def test_partial_metrics_are_reported_under_load_too() -> None:
    world = bench(maxReplicas=2)
    world.fleet.replicas[CHAT] = 2
    world.load(waiting=100)
    world.answers["chat-1"] = Missing("answered 500")
    await world.rounds(2)
    assert world.last.reason == "MetricsPartial"


async def test_an_outage_of_any_length_shrinks_nothing() -> None:
    world = bench()
    world.fleet.replicas[CHAT] = 4
    world.answers |= {f"chat-{i}": Missing("cannot be read: refused") for i in range(4)}
    await world.rounds(200)
    assert world.fleet.writes == []
    world.answers.clear()
    await world.rounds(60)
    assert world.fleet.writes == []  # the window starts anew after it
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 3)]


async def test_ttft_rises_while_the_queue_is_short() -> None:
    world = bench(targets={"ttftSeconds": 0.5})
    bounds = (0.1, 1.0, 2.0, float("inf"))
    load = PodLoad(1.0, 8.0, 0.5)
    world.answers["chat-0"] = PodMetrics(load, Histogram(bounds, (900, 900, 900, 900)))
    await world.rounds(1)
    assert world.fleet.writes == []
    world.answers["chat-0"] = PodMetrics(load, Histogram(bounds, (900, 900, 920, 920)))
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]
    (decision,) = world.decisions()
    assert decision.reason.startswith("TimeToFirstToken: p95 time to first token is 1.95 s")
    assert decision.inputs["ttftP95Seconds"] == "1.95"


async def test_a_restarted_pods_counters_make_no_ttft_and_no_step_down() -> None:
    world = bench(targets={"ttftSeconds": 0.5}, scaleDown={"stabilizationSeconds": 10})
    world.fleet.replicas[CHAT] = 2
    bounds = (0.1, 2.0, float("inf"))
    world.load(waiting=7, pods=("chat-0", "chat-1"))  # 14 on two: one could not hold them
    for counts in ((0, 900, 900), (0, 900, 900), (0, 0, 0)):
        world.answers["chat-0"] = PodMetrics(IDLE.load, Histogram(bounds, counts))
        await world.rounds(1)
    world.answers.clear()
    await world.rounds(1)
    assert (world.last.status, world.last.reason) == ("False", "MetricsPartial")
    assert world.last.message == (
        "2 of 2 ready pods gave metrics; pod chat-0 has begun anew: its counters started over. "
        "Not scaling down below 2 replicas"
    )
    await world.rounds(2)
    assert (world.last.status, world.last.reason) == ("True", "Active")
    await world.rounds(1)
    assert world.fleet.writes == []
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 1)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Missing("did not answer within 3 s"), "pod chat-1 did not answer within 3 s"),
        (Missing("answered garbage: x is y"), "pod chat-1 answered garbage: x is y"),
        (replace(IDLE, made=5.0), "pod chat-1 answers an old page"),
        (replace(IDLE, started=2.0), "pod chat-1 has begun anew"),
        (None, "pod chat-1 was ready and is not any more"),
    ],
)
async def test_each_fault_of_one_pod_is_told_within_15_s_and_shrinks_nothing(
    fault: PodMetrics | Missing | None, words: str
) -> None:
    """The window is over and one pod could hold the load when the fault begins."""
    world = bench(scaleDown={"stabilizationSeconds": 0})
    world.fleet.specs[CHAT] = spec(minReplicas=2, scaleDown={"stabilizationSeconds": 0})
    world.fleet.replicas[CHAT] = 2
    sound = replace(IDLE, started=1.0)
    world.answers["chat-1"] = sound
    await world.rounds(3)
    world.answers["chat-1"] = replace(sound, made=5.0)
    await world.rounds(1)
    world.fleet.specs[CHAT] = spec(scaleDown={"stabilizationSeconds": 0})
    began = world.clock.now
    told = None
    if fault is None:
        world.fleet.ready[CHAT], world.fleet.starting = 1, ("chat-1",)
    else:
        world.answers["chat-1"] = fault
    for _ in range(3):
        await world.rounds(1)
        if told is None and world.last.status == "False":
            told = world.clock.now - INTERVAL - began
            assert words in world.last.message
    assert told is not None
    assert told + 3.0 + INTERVAL <= 15.0, "a round and a scrape's deadline after the fault began"
    assert world.fleet.writes == []
    world.fleet.ready.clear()
    world.fleet.starting = ()
    for round_ in range(4):
        world.answers["chat-1"] = replace(sound, made=100.0 + round_, started=1.0)
        await world.rounds(1)
    world.answers["chat-1"] = IDLE
    await world.rounds(5)
    assert world.last.status == "True"
    assert world.fleet.writes == [(CHAT, 1)]


async def test_requests_between_two_rounds_keep_a_service_awake() -> None:
    world = bench(idleSecondsToZero=30)
    world.fleet.gateway_ready = True
    for ended in range(20):
        world.answers["chat-0"] = replace(IDLE, ended=float(ended // 4))
        await world.rounds(1)
    assert world.fleet.writes == []
    await world.rounds(5)
    assert world.fleet.writes == [(CHAT, 0)]
    assert world.last.reason == "Asleep"
    (decision,) = world.decisions()
    assert decision.reason == "Idle: no request for 30 s"
    await world.rounds(5)
    assert (world.last.status, world.last.reason) == ("True", "Asleep")
    world.fleet.activated = True
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 0), (CHAT, 1)]


async def test_without_a_counter_of_requests_it_never_sleeps_and_says_so() -> None:
    world = bench(idleSecondsToZero=30)
    world.fleet.gateway_ready = True
    await world.rounds(30)
    assert world.fleet.writes == []
    assert "no data for requests ended" in world.last.message


async def test_requests_that_wait_without_any_first_token_are_no_good_ttft() -> None:
    world = bench(targets={"ttftSeconds": 0.5}, scaleDown={"stabilizationSeconds": 0})
    world.fleet.replicas[CHAT] = 2
    stuck = PodMetrics(PodLoad(1.0, 0.0, 0.0), IDLE.ttft)
    world.answers |= {"chat-0": stuck}
    await world.rounds(5)
    assert world.fleet.writes == []
    assert world.last.reason == "MetricsPartial"
    assert "no data for TimeToFirstToken" in world.last.message


async def test_a_step_taken_on_partial_metrics_is_recorded_at_once() -> None:
    """The first burst on an idle pod: many wait, no first token yet, and the queue is enough."""
    world = bench(targets={"queueDepth": 4, "ttftSeconds": 5})
    world.answers["chat-0"] = PodMetrics(PodLoad(24.0, 0.0, 0.0), IDLE.ttft)
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]
    [decision] = world.decisions()
    assert (decision.from_replicas, decision.to_replicas) == (1, 2)
    assert world.last.status == "True"


async def test_a_page_without_the_histogram_is_missing_only_if_a_target_wants_it() -> None:
    page = replace(IDLE, ttft=None)
    wants = bench(targets={"ttftSeconds": 0.5}, scaleDown={"stabilizationSeconds": 0})
    wants.fleet.replicas[CHAT] = 2
    wants.answers |= {"chat-0": page, "chat-1": page}
    await wants.rounds(4)
    assert wants.fleet.writes == []
    other = bench(scaleDown={"stabilizationSeconds": 0})
    other.fleet.replicas[CHAT] = 2
    other.answers |= {"chat-0": page, "chat-1": page}
    await other.rounds(4)
    assert other.fleet.writes == [(CHAT, 1)]
