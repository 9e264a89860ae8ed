"""The scaling loop over fakes in virtual time: services, pods, a leader, a client."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from quire_operator import api
from quire_operator.kinds import SERVICE_KIND, Kind, Manifest
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.readings import Readings
from quire_operator.scaling import Observation, PodLoad
from quire_operator.scaling_histogram import Histogram
from quire_operator.scaling_loop import ScalingLoop
from quire_operator.scraper import Missing, PodMetrics
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


def loads(ready: int, waiting: float = 0, running: float = 0, kv: float = 0) -> tuple[PodLoad, ...]:
    """`ready` pods that share `waiting` and `running` evenly, each with `kv` of its cache used."""
    return (PodLoad(waiting / ready, running / ready, kv),) * ready


def seen(replicas: int, **changes: object) -> Observation:
    """A service all of whose pods are ready and idle, unless told otherwise."""
    base = Observation(
        now=10_000.0, replicas=replicas, ready=replicas, loads=loads(replicas) if replicas else ()
    )
    return replace(base, **changes)  # type: ignore[arg-type]


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
