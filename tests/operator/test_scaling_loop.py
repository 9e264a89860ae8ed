"""The loop over fakes in virtual time: what it writes, its rounds, its walls."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web

from quire_operator.errors import Conflict, Denied, NotFound, NotLeader
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.readings import Readings
from quire_operator.scaling import PodLoad
from quire_operator.scaling_loop import run
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.settings import Settings
from quire_operator.testing_scaling import (
    CHAT,
    IDLE,
    INTERVAL,
    Bench,
    FakeClient,
    FakeFleet,
    FakeLeader,
    bench,
    spec,
)


async def test_a_burst_scales_up_and_says_why() -> None:
    world = bench()
    world.load(waiting=24)
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]
    (decision,) = world.decisions()
    assert decision.time == "2026-11-21T00:00:00Z"
    assert (decision.from_replicas, decision.to_replicas) == (1, 2)
    assert decision.reason == (
        "QueueDepth: 24 requests wait on 1 ready pod, 24 each; the target is 4; "
        "6 replicas would hold it, one step at most doubles the ready pods, to 2"
    )
    assert decision.inputs == {
        "ready": "1",
        "starting": "0",
        "pending": "0",
        "unschedulable": "0",
        "draining": "0",
        "reporting": "1",
        "need": "6",
        "waiting": "24",
        "running": "8",
        "kvCacheUtilization": "0.5",
        "ratioQueueDepth": "6",
        "ratioKVCacheUtilization": "0.5556",
    }
    assert (world.last.status, world.last.reason) == ("True", "Active")
    assert world.sample(
        "quire_scaling_decisions_total",
        namespace="team", service="chat", direction="up", reason="QueueDepth", dry_run="false",
    ) == 1  # fmt: skip


async def test_the_load_gone_it_comes_back_down_after_the_window() -> None:
    world = bench(scaleDown={"stabilizationSeconds": 60})
    world.load(waiting=24)
    await world.rounds(1)
    world.answers.clear()
    await world.rounds(30)
    assert [to for _, to in world.fleet.writes] == [2, 1]
    up, down = world.decisions()
    assert down.reason == (
        "LoadFitsFewer: for 60 s the load would have stayed inside the targets on 1 of 2 replicas"
    )
    assert (up.time, down.time) == ("2026-11-21T00:00:00Z", "2026-11-21T00:01:05Z")


async def test_a_watch_that_lags_behind_repeats_no_write_and_restarts_no_window() -> None:
    world = bench(scaleDown={"stabilizationSeconds": 60})
    world.fleet.replicas[CHAT] = 3
    await world.rounds(13)
    assert world.fleet.writes == [(CHAT, 2)]
    world.fleet.lagging = True
    await world.rounds(2)
    world.fleet.lagging = False
    await world.rounds(11)
    assert world.fleet.writes == [(CHAT, 2), (CHAT, 1)]


async def test_every_replica_scrapes_and_the_leader_alone_writes() -> None:
    world = bench()
    world.leader.is_leader = False
    world.load(waiting=24)
    await world.rounds(3)
    assert world.fleet.writes == []
    assert world.decisions() == []
    assert len(world.asked) == 3
    world.leader.is_leader = True
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]


@pytest.mark.parametrize(
    "error",
    [NotLeader("lost"), NotFound(404, "PATCH", "gone"), Conflict(409, "PATCH", "it changed")],
)
async def test_a_write_that_came_too_late_is_no_decision(error: Exception) -> None:
    world = bench()
    world.fleet.error = error
    world.load(waiting=24)
    await world.rounds(1)
    assert world.decisions() == []
    assert world.last.status == "True"


async def test_a_refused_write_shows_in_the_condition_and_is_tried_again() -> None:
    world = bench()
    world.fleet.error = Denied(403, "PATCH chat/scale", "may not patch inferenceservices/scale")
    world.load(waiting=24)
    await world.rounds(2)
    assert (world.last.status, world.last.reason) == ("False", "ScaleRefused")
    assert "may not patch" in world.last.message
    world.fleet.error = None
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]
    assert world.last.status == "True"


async def test_a_dry_run_records_each_wish_once_and_writes_nothing() -> None:
    world = bench(dryRun=True)
    world.load(waiting=24)
    await world.rounds(5)
    assert world.fleet.writes == []
    (decision,) = world.decisions()
    assert decision.reason.endswith("(dry run)")
    assert (world.last.desired, world.last.reason) == (2, "DryRun")


async def test_without_a_gateway_it_never_sleeps_and_says_so_when_it_matters() -> None:
    world = bench(idleSecondsToZero=30)
    world.answers["chat-0"] = replace(IDLE, ended=7.0)
    await world.rounds(5)
    assert world.last.status == "True"
    await world.rounds(10)
    assert world.fleet.writes == []
    assert (world.last.status, world.last.reason) == ("False", "NoGateway")
    assert world.last.message == (
        "No request for 30 s, but no gateway is ready to hold the next one: not below minReplicas, "
        "which is 1; install quire's gateway, or unset idleSecondsToZero"
    )


async def test_schedules_lift_the_minimum_at_their_moment_and_say_which() -> None:
    entries = [
        {"cron": "1 0 * * *", "minReplicas": 3},
        {"cron": "5 0 * * *", "minReplicas": 1, "timeZone": "UTC"},
    ]
    world = bench(schedules=entries, scaleDown={"stabilizationSeconds": 60})
    await world.rounds(12)
    assert world.fleet.writes == []
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 3)]
    (decision,) = world.decisions()
    assert decision.time == "2026-11-21T00:01:00Z"
    assert decision.reason == (
        "BelowMinReplicas: minReplicas is 3 by the schedule '1 0 * * *' (UTC)"
    )
    await world.rounds(47)
    assert world.fleet.replicas[CHAT] == 3
    await world.rounds(14)
    assert [to for _, to in world.fleet.writes] == [3, 2, 1]


async def test_a_new_minimum_in_the_spec_holds_at_once() -> None:
    world = bench(schedules=[{"cron": "0 0 * * *", "minReplicas": 2}])
    await world.rounds(1)
    world.fleet.specs[CHAT] = spec(schedules=[{"cron": "0 0 * * *", "minReplicas": 4}])
    await world.rounds(1)
    assert [to for _, to in world.fleet.writes] == [2, 4]


async def test_a_schedule_that_is_not_understood_is_told_and_nothing_shrinks() -> None:
    broken = {"cron": "0 8 * * *", "minReplicas": 2, "timeZone": "Europe/Bonn"}
    world = bench(schedules=[broken], scaleDown={"stabilizationSeconds": 0})
    world.fleet.replicas[CHAT] = 3
    await world.rounds(5)
    assert world.fleet.writes == []
    assert (world.last.status, world.last.reason) == ("False", "InvalidSchedule")
    assert world.last.message == (
        "timeZone must be an IANA name such as Europe/Berlin, got 'Europe/Bonn'. "
        "Not scaling down until it is corrected"
    )
    world.fleet.specs[CHAT] = spec(scaleDown={"stabilizationSeconds": 0})
    await world.rounds(1)
    assert world.fleet.writes == [(CHAT, 2)]
    assert world.last.status == "True"


async def test_a_dry_run_sleeps_in_words_only() -> None:
    world = bench(dryRun=True, idleSecondsToZero=30)
    world.fleet.gateway_ready = True
    world.answers["chat-0"] = replace(IDLE, ended=0.0)
    await world.rounds(10)
    assert world.fleet.writes == []
    assert world.last.reason == "DryRun"
    assert [decision.to_replicas for decision in world.decisions()] == [0]


@pytest.mark.parametrize("change", ["mode", "writer", "replicas", "deleted"])
async def test_what_changed_during_the_scrape_is_not_written_over(change: str) -> None:
    fleet = FakeFleet({CHAT: spec()})

    async def scrape(url: str) -> PodMetrics | Missing:
        if change == "mode":
            fleet.specs[CHAT] = spec(mode="hpa")
        elif change == "writer":
            fleet.other_writer = "HorizontalPodAutoscaler chat"
        elif change == "replicas":
            fleet.replicas[CHAT] = 3
        else:
            fleet.specs.clear()
        return replace(IDLE, load=PodLoad(24.0, 8.0, 0.5))

    world = Bench(fleet, scrape=scrape)
    await world.rounds(1)
    assert fleet.writes == []
    assert world.decisions() == []


@pytest.mark.parametrize("change", ["activation", "gateway"])
async def test_what_came_during_the_scrape_holds_off_sleep(change: str) -> None:
    fleet = FakeFleet({CHAT: spec(idleSecondsToZero=30)}, gateway_ready=True)
    comes = False

    async def scrape(url: str) -> PodMetrics | Missing:
        if comes and change == "activation":
            fleet.activated = True
        elif comes:
            fleet.gateway_ready = False
        return replace(IDLE, ended=0.0)

    world = Bench(fleet, scrape=scrape)
    await world.rounds(6)
    assert fleet.writes == []
    comes = True
    await world.rounds(1)
    assert fleet.writes == [], "it was to sleep by what was known before the scrape"
    assert (world.last.desired, world.last.reason) == (1, "Active")
    comes, fleet.activated, fleet.gateway_ready = False, False, True
    await world.rounds(10)
    assert fleet.writes == [(CHAT, 0)]


async def test_an_activation_is_followed_at_once_and_only_at_zero() -> None:
    world = bench(idleSecondsToZero=30)
    world.fleet.replicas[CHAT] = 0
    await world.rounds(1)
    world.fleet.activated = True
    world.loop.hurry(CHAT)
    await asyncio.sleep(0.01)
    assert world.fleet.writes == [(CHAT, 1)]
    world.loop.hurry(CHAT)
    world.loop.hurry(Key("team", "gone"))
    await asyncio.sleep(0.01)
    assert world.asked == []


async def test_deleted_services_leave_no_series() -> None:
    world = bench()
    world.load(waiting=24)
    await world.rounds(1)
    assert b'service="chat"' in world.metrics.text()
    world.fleet.deleting.add(CHAT)
    await world.rounds(1)
    assert len(world.fleet.writes) == 1
    del world.fleet.specs[CHAT]
    await world.rounds(1)
    assert b'service="chat"' not in world.metrics.text()


async def test_scrape_age_grows_while_metrics_are_missing() -> None:
    world = bench()
    await world.rounds(1)
    world.answers["chat-0"] = Missing("answered 500")
    await world.rounds(2)
    age = world.sample("quire_scrape_age_seconds", namespace="team", service="chat")
    assert age == 3 * INTERVAL
    assert world.sample("quire_scrapes_total", result="missing") == 2


async def test_a_service_that_hangs_delays_no_other() -> None:
    stuck, fine = Key("team", "stuck"), Key("team", "fine")
    fleet = FakeFleet({stuck: spec(), fine: spec()})
    release = asyncio.Event()

    async def scrape(url: str) -> PodMetrics | Missing:
        if "stuck" in url:
            await release.wait()
            return Missing("did not answer within 3 s")
        return replace(IDLE, load=PodLoad(24.0, 8.0, 0.5))

    world = Bench(fleet, scrape=scrape)
    turn = asyncio.create_task(world.loop.run_round())
    while not fleet.writes:
        await asyncio.sleep(0)
    assert fleet.writes == [(fine, 2)]
    assert not turn.done()
    release.set()
    await turn


async def test_the_next_round_does_not_wait_for_a_service_that_hangs() -> None:
    stuck, fine = Key("team", "stuck"), Key("team", "fine")
    asked: list[str] = []

    async def scrape(url: str) -> PodMetrics | Missing:
        asked.append(url.removeprefix("http://").partition("-")[0])
        if "stuck" in url:
            await asyncio.Event().wait()
        return IDLE

    world = Bench(FakeFleet({fine: spec(), stuck: spec()}), scrape=scrape)
    task = asyncio.create_task(world.loop.run())
    while asked.count("fine") < 4:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.clock.now - 1000.0 == pytest.approx(INTERVAL * 3, abs=INTERVAL)
    assert asked.count("stuck") == 1, "a service is asked again once it has answered"


async def test_a_defect_in_one_service_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    broken, fine = Key("team", "broken"), Key("team", "fine")
    fleet = FakeFleet({broken: spec(), fine: spec()})

    async def scrape(url: str) -> PodMetrics | Missing:
        if "broken" in url:
            raise RuntimeError("a defect of ours")
        return replace(IDLE, load=PodLoad(24.0, 8.0, 0.5))

    world = Bench(fleet, scrape=scrape)
    await world.rounds(1)
    assert fleet.writes == [(fine, 2)]
    assert "[team/broken] scaling failed" in caplog.text


async def test_a_thousand_services_are_spread_over_half_the_interval() -> None:
    fleet = FakeFleet({Key("team", f"s{i}"): spec() for i in range(1000)})
    world = Bench(fleet)
    start = world.clock.now
    await world.loop.run_round()
    assert len(world.asked) == 1000
    assert world.clock.now - start == pytest.approx(INTERVAL / 2, rel=0.05)


async def test_rounds_keep_their_pace() -> None:
    world = bench()
    task = asyncio.create_task(world.loop.run())
    while len(world.asked) < 4:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.clock.now - 1000.0 == pytest.approx(INTERVAL * 3, abs=INTERVAL)


async def test_the_whole_of_it_against_a_real_pod() -> None:
    """run(): real scrapes over HTTP, and /scale under the scaler's own field manager."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(
            text="vllm:num_requests_waiting 24\n"
            "vllm:num_requests_running 8\nvllm:kv_cache_usage_perc 0.5\n"
        )

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fleet = FakeFleet({CHAT: spec()}, address=("127.0.0.1", runner.addresses[0][1]))
    client, settings = FakeClient(fleet), Settings(engine_image="x", scrape_interval_seconds=0.5)
    task = asyncio.create_task(run(fleet, client, settings, FakeLeader(), Metrics(), Readings()))
    async with asyncio.timeout(20):
        while not fleet.reports or not client.events:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await runner.cleanup()
    assert fleet.writes[0] == (CHAT, 2)
    assert client.events[0]["reason"] == "ScaledUp"
    assert set(client.managers) == {"quire-scaler"}
