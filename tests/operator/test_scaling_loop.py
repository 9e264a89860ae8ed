"""The loop over fakes in virtual time: what it writes, reports, and never lets through."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from quire_operator import api
from quire_operator.errors import Conflict, Denied, NotFound, NotLeader
from quire_operator.kinds import SERVICE_KIND, Kind, Manifest
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.readings import Reading, Readings
from quire_operator.scaling import PodLoad
from quire_operator.scaling_histogram import Histogram
from quire_operator.scaling_loop import ScalingLoop, run
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.settings import Settings
from quire_operator.world import PodEndpoint, ScalingReport, Snapshot

CHAT = Key("team", "chat")
INTERVAL = 5.0
TURNS = 20  # of the event loop, in which a service that waits for nothing is done
TTFT = [Histogram((1.0, float("inf")), (count, count)) for count in (0.0, 20.0)]
IDLE = PodMetrics(PodLoad(0.0, 0.0, 0.0), Histogram((1.0, float("inf")), (0.0, 0.0)))


class Clock:
    """Virtual seconds: `sleep` moves it, and lets what runs come to its end."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def wall(self) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=self.now - 1000.0)


def spec(**scaling: object) -> api.Spec:
    return api.decode_spec(
        {"model": {"uri": "hf://org/model"}, "scaling": {"mode": "builtin", **scaling}}
    )


@dataclass
class FakeFleet:
    """Services whose pods are ready as soon as they are wanted, unless `ready` says how many are.

    `/scale` is written at once; with `lag` the watch shows it that many rounds later."""

    specs: dict[Key, api.Spec]
    replicas: dict[Key, int] = field(default_factory=dict)
    shown: dict[Key, int] = field(default_factory=dict)
    ready: dict[Key, int] = field(default_factory=dict)
    address: tuple[str, int] | None = None  # of every pod; None: its name, which only fakes know
    deleting: set[Key] = field(default_factory=set)
    other_writer: str | None = None
    activated: bool = False
    gateway_ready: bool = False
    starting: tuple[str, ...] = ()
    writes: list[tuple[Key, int]] = field(default_factory=list)
    reports: list[tuple[Key, ScalingReport]] = field(default_factory=list)
    error: Exception | None = None
    lagging: bool = False

    def keys(self) -> list[Key]:
        return list(self.specs)

    def snapshot(self, key: Key) -> Snapshot | None:
        if key not in self.specs:
            return None
        if not self.lagging:
            self.shown[key] = self.replicas.setdefault(key, 1)
        replicas = self.shown[key]
        ready = self.ready.get(key, replicas)
        return Snapshot(
            key=key,
            spec=self.specs[key],
            replicas=replicas,
            ready_pods=tuple(
                PodEndpoint(name, *(self.address or (name, 8000)), "r", 0.0)
                for name in (f"{key.name}-{i}" for i in range(ready))
            ),
            pending=max(0, replicas - ready),
            uid=f"uid-{key.name}",
            resource_version="7",
            starting=self.starting,
            activated=self.activated,
            gateway_ready=self.gateway_ready,
            other_writer=self.other_writer,
            unschedulable=0,
            deleting=key in self.deleting,
        )

    def record_scaling(self, key: Key, report: ScalingReport) -> None:
        self.reports.append((key, report))

    async def scale(self, key: Key, replicas: int) -> None:
        if self.error is not None:
            raise self.error
        self.writes.append((key, replicas))
        self.replicas[key] = replicas


class FakeClient:
    """Takes the writes that the scaler makes."""

    def __init__(self, fleet: FakeFleet) -> None:
        self._fleet = fleet
        self.managers: list[str] = []
        self.events: list[Manifest] = []

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        self.managers.append(manager)
        self.events.append(manifest)
        return manifest

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Manifest, manager: str, **options: object
    ) -> Manifest:
        assert (kind, options) == (SERVICE_KIND, {"subresource": "scale"})
        assert body["metadata"] == {"resourceVersion": "7"}
        self.managers.append(manager)
        await self._fleet.scale(Key(namespace, name), body["spec"]["replicas"])
        return {}


@dataclass
class FakeLeader:
    is_leader: bool = True


@dataclass
class Bench:
    """The loop with everything around it."""

    fleet: FakeFleet
    answers: dict[str, PodMetrics | Missing] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    leader: FakeLeader = field(default_factory=FakeLeader)
    asked: list[str] = field(default_factory=list)
    scrape: Callable[[str], Awaitable[PodMetrics | Missing]] | None = None
    events: list[Manifest] = field(default_factory=list)
    event_error: Exception | None = None
    readings: Readings = field(default_factory=Readings)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.clock)
        self.loop = ScalingLoop(
            self.fleet,
            self.fleet.scale,
            self.leader,
            self.scrape or self._scrape,
            self.metrics,
            INTERVAL,
            clock=self.clock,
            sleep=self.clock.sleep,
            wall_clock=self.clock.wall,
            readings=self.readings,
            post=self._post,
        )

    async def _post(self, event: Manifest) -> None:
        if self.event_error is not None:
            raise self.event_error
        self.events.append(event)

    def told(self) -> list[tuple[str, str]]:
        """Type and reason of each Event."""
        return [(event["type"], event["reason"]) for event in self.events]

    async def _scrape(self, url: str) -> PodMetrics | Missing:
        self.asked.append(url)
        pod = url.removeprefix("http://").partition(":")[0]
        return self.answers.get(pod, IDLE)

    async def rounds(self, count: int) -> None:
        for _ in range(count):
            await self.loop.run_round()
            self.clock.now += INTERVAL

    def load(self, waiting: float, pods: Sequence[str] = ("chat-0",)) -> None:
        for pod in pods:
            self.answers[pod] = replace(IDLE, load=PodLoad(waiting, 8.0, 0.5))

    @property
    def last(self) -> ScalingReport:
        return self.fleet.reports[-1][1]

    def decisions(self) -> list[api.ScalingDecision]:
        return [report.decision for _, report in self.fleet.reports if report.decision]

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def bench(**scaling: object) -> Bench:
    return Bench(FakeFleet({CHAT: spec(**scaling)}))


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


async def test_a_dry_run_sleeps_in_words_only() -> None:
    world = bench(dryRun=True, idleSecondsToZero=30)
    world.fleet.gateway_ready = True
    world.answers["chat-0"] = replace(IDLE, ended=0.0)
    await world.rounds(10)
    assert world.fleet.writes == []
    assert world.last.reason == "DryRun"
    assert [decision.to_replicas for decision in world.decisions()] == [0]


async def test_a_dry_run_posts_no_move() -> None:
    world = bench(dryRun=True)
    world.load(waiting=24)
    await world.rounds(3)
    assert world.events == []


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
