"""The loop beside HPAs and KEDA: what it reads for them, and that it writes nothing."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from quire_operator.readings import Reading
from quire_operator.scaling import PodLoad
from quire_operator.scraper import Missing
from quire_operator.testing_scaling import CHAT, IDLE, TTFT, bench, spec


@pytest.mark.parametrize("mode", ["builtin", "hpa", "keda"])
async def test_what_the_pods_say_is_there_for_those_who_ask(mode: str) -> None:
    world = bench(mode=mode, targets={"ttftSeconds": 0.5})
    world.fleet.replicas[CHAT] = 2
    world.load(waiting=3, pods=("chat-0", "chat-1"))
    world.answers["chat-0"] = replace(IDLE, load=PodLoad(3.0, 8.0, 0.7), ttft=TTFT[0])
    await world.rounds(1)
    world.answers["chat-0"] = replace(IDLE, load=PodLoad(3.0, 8.0, 0.7), ttft=TTFT[1])
    await world.rounds(1)
    reading = world.readings.get(CHAT)
    assert reading == Reading(
        at=1005.0,
        wall=datetime(2026, 11, 21, 0, 0, 5, tzinfo=UTC).timestamp(),
        ready=2,
        complete=True,
        loads_complete=True,
        waiting=6.0,
        running=16.0,
        kv_cache_utilization=pytest.approx(0.6),
        ttft_p95_seconds=0.95,
        idle=False,
    )
    world.answers["chat-1"] = Missing("answered 500")
    await world.rounds(1)
    reading = world.readings.get(CHAT)
    assert reading is not None
    assert (reading.complete, reading.missing) == (False, ("pod chat-1 answered 500",))


@pytest.mark.parametrize("mode", ["hpa", "keda"])
async def test_where_another_writes_the_loop_only_reads(mode: str) -> None:
    world = bench(mode=mode)
    world.load(waiting=1000)
    await world.rounds(3)
    assert (world.fleet.writes, world.decisions(), world.events) == ([], [], [])
    assert len(world.asked) == 3
    world.fleet.specs[CHAT] = spec()
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]


@pytest.mark.parametrize("mode", ["hpa", "keda"])
async def test_what_the_others_do_not_get_is_told(mode: str) -> None:
    world = bench(mode=mode)
    world.fleet.replicas[CHAT] = 2
    await world.rounds(1)
    assert world.last.status == "True"
    world.answers["chat-1"] = Missing("timed out")
    await world.rounds(1)
    assert world.last.status == "True", "one lost scrape is noise"
    await world.rounds(1)
    assert (world.last.status, world.last.reason) == ("False", "MetricsPartial")
    assert (
        world.last.message == "pod chat-1 timed out. The autoscaler is told so, and does not shrink"
    )
    del world.answers["chat-1"]
    await world.rounds(1)
    assert world.last.status == "True"
    world.fleet.ready[CHAT] = 0
    await world.rounds(3)
    assert world.last.status == "True", "that no pod is ready is told by Ready"


async def test_a_queue_without_a_first_token_is_passed_on() -> None:
    world = bench(mode="hpa", targets={"ttftSeconds": 0.5})
    world.load(waiting=9)  # and a histogram in which nothing moves
    await world.rounds(2)
    reading = world.readings.get(CHAT)
    assert reading is not None
    assert (reading.complete, reading.loads_complete) == (False, True)
    assert (reading.waiting, reading.ttft_p95_seconds) == (9.0, None)
    world.answers["chat-0"] = Missing("timed out")
    await world.rounds(1)
    reading = world.readings.get(CHAT)
    assert reading is not None
    assert not reading.loads_complete


async def test_nothing_is_written_while_another_writer_exists() -> None:
    world = bench()
    world.fleet.other_writer = "HorizontalPodAutoscaler chat"
    world.load(waiting=1000)
    await world.rounds(3)
    assert world.fleet.writes == []
    assert (world.last.status, world.last.reason) == ("False", "OtherAutoscaler")
    assert world.last.message.startswith("HorizontalPodAutoscaler chat still exists")
    assert world.readings.get(CHAT) is not None
    world.fleet.other_writer = None
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]


async def test_services_that_others_scale_are_left_alone() -> None:
    world = bench(mode="none")
    world.load(waiting=1000)
    await world.rounds(3)
    assert (world.fleet.writes, world.fleet.reports, world.asked) == ([], [], [])
    assert world.readings.get(CHAT) is None
    assert world.sample("quire_desired_replicas", namespace="team", service="chat") == 1
    world.fleet.specs[CHAT] = spec()
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]
