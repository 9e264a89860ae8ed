"""What the loop posts: each move once, trouble when it comes and when it goes."""

from dataclasses import replace

import pytest

from quire_operator.errors import Denied, NotLeader
from quire_operator.scaling import PodLoad
from quire_operator.scraper import Missing
from quire_operator.testing_scaling import CHAT, IDLE, bench


async def test_every_move_is_an_event_of_the_leaders() -> None:
    world = bench(idleSecondsToZero=30, scaleDown={"stabilizationSeconds": 10})
    world.fleet.gateway_ready = True
    world.answers["chat-1"] = replace(IDLE, ended=1.0)
    world.answers["chat-0"] = replace(IDLE, ended=1.0, load=PodLoad(24.0, 8.0, 0.5))
    world.leader.is_leader = False
    await world.rounds(1)
    assert world.events == []
    world.leader.is_leader = True
    await world.rounds(1)
    (event,) = world.events
    assert event == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event["metadata"]["name"], "namespace": "team"},
        "involvedObject": {
            "apiVersion": "serving.quire.dev/v1alpha1",
            "kind": "InferenceService",
            "name": "chat",
            "namespace": "team",
            "uid": "uid-chat",
        },
        "type": "Normal",
        "reason": "ScaledUp",
        "message": "From 1 to 2 replicas: QueueDepth: 24 requests wait on 1 ready pod, 24 each; "
        "the target is 4; 6 replicas would hold it, one step at most doubles the ready pods, to 2",
        "count": 1,
        "firstTimestamp": "2026-11-21T00:00:05Z",
        "lastTimestamp": "2026-11-21T00:00:05Z",
        "source": {"component": "quire-scaler"},
        "reportingComponent": "quire-scaler",
    }
    world.answers["chat-0"] = replace(IDLE, ended=1.0)
    await world.rounds(20)
    world.fleet.activated = True
    await world.rounds(2)
    moves = [reason for kind, reason in world.told() if kind == "Normal"]
    assert moves == ["ScaledUp", "ScaledDown", "ScaledToZero", "Woken"]
    names = [event["metadata"]["name"] for event in world.events]
    assert len(set(names)) == len(names)


async def test_trouble_is_an_event_when_it_comes_and_when_it_goes() -> None:
    world = bench()
    world.fleet.ready[CHAT] = 0
    await world.rounds(3)
    assert world.events == [], "starting is no trouble"
    world.fleet.ready.clear()
    await world.rounds(2)
    world.answers["chat-0"] = Missing("answered 500")
    await world.rounds(10)
    assert world.told() == [("Warning", "MetricsMissing")]
    assert "pod chat-0 answered 500" in world.events[0]["message"]
    world.answers.clear()
    await world.rounds(10)
    assert world.told()[1:] == [("Normal", "ScalingRecovered")]


async def test_trouble_that_flickers_is_told_once_in_five_minutes() -> None:
    world = bench()
    for _ in range(12):
        world.answers["chat-0"] = Missing("answered 500")
        await world.rounds(2)
        world.answers.clear()
        await world.rounds(3)
    assert world.told() == [("Warning", "MetricsMissing"), ("Normal", "ScalingRecovered")]
    await world.rounds(6)
    world.answers["chat-0"] = Missing("answered 500")
    await world.rounds(2)
    assert world.told()[2:] == [("Warning", "MetricsMissing")]


async def test_troubles_that_take_turns_are_told_once_each_in_five_minutes() -> None:
    world = bench()
    world.fleet.replicas[CHAT] = 2
    for turn in range(12):
        for pod in ("chat-0", "chat-1")[: 1 + turn % 2]:
            world.answers[pod] = Missing("answered 500")
        await world.rounds(2)
        world.answers.clear()
        await world.rounds(2)
    assert sorted(reason for kind, reason in world.told() if kind == "Warning") == [
        "MetricsMissing",
        "MetricsPartial",
    ]


@pytest.mark.parametrize(
    "error", [Denied(403, "POST events", "may not"), NotLeader("lost"), TimeoutError()]
)
async def test_an_event_that_cannot_be_posted_stops_no_scaling(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = bench()
    world.event_error = error
    world.load(waiting=24)
    await world.rounds(2)
    assert world.fleet.writes == [(CHAT, 2), (CHAT, 4)]
    assert len(world.decisions()) == 2
    assert "event ScaledUp not posted" in caplog.text


async def test_a_dry_run_posts_no_move() -> None:
    world = bench(dryRun=True)
    world.load(waiting=24)
    await world.rounds(3)
    assert world.events == []
