"""One loop for all services: scrape their ready pods, decide, write /scale, report.

Every replica of the operator runs it, so that a new leader knows the load already; only the leader
writes. Services are started one after another over half of the interval and end on their own: a
service whose pods hang costs itself its deadline and the others nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from quire_operator import apply, scaling_report, scraper
from quire_operator.client import Api
from quire_operator.errors import ApiError, NotFound, NotLeader
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.scaling import (
    Decision,
    Observation,
    ScalingConfig,
    decide,
    remember,
)
from quire_operator.scaling_config import GAP_ROUNDS, TTFT_WINDOW_ROUNDS, MinimumNow, config_of
from quire_operator.scaling_history import History
from quire_operator.scaling_pods import PodMemory, Said
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.settings import Settings
from quire_operator.world import PodEndpoint, ScalingReport, Snapshot

logger = logging.getLogger(__name__)

BLIND_ROUNDS = 2  # one lost scrape is noise, the second in a row is reported
WRITE_SHOWS_ROUNDS = 3  # within which the watch brings our own write back
SLICE = 16  # services started at a time


class Fleet(Protocol):
    """All services (`world.World`)."""

    def keys(self) -> Sequence[Key]: ...
    def snapshot(self, key: Key) -> Snapshot | None: ...
    def record_scaling(self, key: Key, report: ScalingReport) -> None: ...


class Leader(Protocol):
    @property
    def is_leader(self) -> bool: ...


Scrape = Callable[[str], Awaitable[PodMetrics | Missing]]
WriteScale = Callable[[Key, int], Awaitable[None]]


@dataclass(slots=True)
class _State:
    """What the loop keeps of one service."""

    pods: PodMemory
    history: History = field(default_factory=History)
    minimum: MinimumNow = field(default_factory=MinimumNow)
    blind_rounds: int = 0
    written: tuple[int, int, float] | None = None  # our last write: from, to, believed until
    dry_run_to: int | None = None  # the last dry decision that was recorded


class ScalingLoop:
    """`run_round` does every service once; `run` repeats it. Raises nothing: a service's failure is
    logged and its next round is a new try."""

    def __init__(
        self,
        fleet: Fleet,
        write_scale: WriteScale,
        leader: Leader,
        scrape: Scrape,
        metrics: Metrics,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._fleet = fleet
        self._write_scale = write_scale
        self._leader = leader
        self._scrape = scrape
        self._metrics = metrics
        self._interval = interval_seconds
        self._clock = clock
        self._sleep = sleep
        self._wall_clock = wall_clock
        self._states: dict[Key, _State] = {}

    async def run(self) -> None:
        """Rounds at a fixed pace until cancelled; a round that took longer is followed at once."""
        while True:
            started = self._clock()
            await self.run_round()
            took = self._clock() - started
            self._metrics.round_took(took)
            await self._sleep(max(0.0, self._interval - took))

    async def run_round(self) -> None:
        keys = list(self._fleet.keys())
        self._forget_all_but(set(keys))
        num_slices = -(-len(keys) // SLICE)
        async with asyncio.TaskGroup() as tasks:
            for index in range(num_slices):
                if index:  # spread out, so that answers do not queue behind each other's parsing
                    await self._sleep(self._interval / 2 / num_slices)
                for key in keys[index * SLICE : (index + 1) * SLICE]:
                    tasks.create_task(self._guarded(key))

    async def _guarded(self, key: Key) -> None:
        try:
            await self._serve(key)
        except Exception:  # the wall between services: one's defect must not stop the others
            logger.exception("[%s] scaling failed in this round", key)

    def _forget_all_but(self, keys: set[Key]) -> None:
        for key in self._states.keys() - keys:
            del self._states[key]
            self._metrics.forget(*key)

    async def _serve(self, key: Key) -> None:
        view = self._fleet.snapshot(key)
        if view is None or view.deleting:
            return
        self._metrics.replicas(*key, desired=view.replicas, ready=len(view.ready_pods))
        if key not in self._states:
            self._states[key] = self._new_state()
        state = self._states[key]
        if view.spec.scaling.mode != "builtin":
            self._states[key] = self._new_state()  # another's history is not ours to conclude from
            return
        config = config_of(view.spec, state.minimum(view.spec, self._wall_clock()), self._interval)
        answers = await self._ask(view.ready_pods)
        said = state.pods.hear(self._clock(), answers, view.starting)
        decision = decide(config, state.history, self._observe(view, state, said))
        applied, refusal = await self._follow(key, decision, state)
        state.history = remember(config, state.history, decision, applied=applied)
        self._count(key, decision, said, len(answers))
        self._tell(key, config, decision, state, said.missing, applied, refusal)

    def _new_state(self) -> _State:
        window, doubt = TTFT_WINDOW_ROUNDS * self._interval, GAP_ROUNDS * self._interval
        return _State(PodMemory(window, doubt))

    async def _ask(self, pods: Sequence[PodEndpoint]) -> dict[str, PodMetrics | Missing]:
        urls = [scraper.metrics_url(pod.ip, pod.port) for pod in pods]
        answers = await asyncio.gather(*(self._scrape(url) for url in urls))
        return {pod.name: answer for pod, answer in zip(pods, answers, strict=True)}

    def _observe(self, view: Snapshot, state: _State, said: Said) -> Observation:
        now = self._clock()
        return Observation(
            now=now,
            replicas=_replicas(view, state, now),
            ready=len(view.ready_pods),
            starting=len(view.starting),
            pending=view.pending,
            unschedulable=view.unschedulable,
            draining=view.draining,
            loads=said.loads,
            doubtful=said.doubtful,
            ttft=said.ttft,
            activated=view.activated,
            gateway_ready=view.gateway_ready,
        )

    async def _follow(self, key: Key, decision: Decision, state: _State) -> tuple[bool, str | None]:
        """(replicas were moved, why not if the API server refused)."""
        if not decision.changed or decision.dry_run or not self._leader.is_leader:
            return False, None
        try:
            async with asyncio.timeout(max(5.0, self._interval)):
                await self._write_scale(key, decision.to_replicas)
        except (NotLeader, NotFound):
            return False, None  # another leads, or the service has just been deleted
        except TimeoutError:
            return False, "the API server did not answer in time"
        except ApiError as error:
            logger.warning("[%s] cannot write /scale: %s", key, error)
            return False, error.message
        until = self._clock() + WRITE_SHOWS_ROUNDS * self._interval
        state.written = (decision.from_replicas, decision.to_replicas, until)
        return True, None

    def _count(self, key: Key, decision: Decision, said: Said, num_asked: int) -> None:
        self._metrics.scraped(len(said.loads), num_asked - len(said.loads))
        if decision.complete:
            self._metrics.complete(*key)

    def _tell(
        self,
        key: Key,
        config: ScalingConfig,
        decision: Decision,
        state: _State,
        missing: tuple[str, ...],
        applied: bool,
        refusal: str | None,
    ) -> None:
        state.blind_rounds = state.blind_rounds + 1 if decision.blindness else 0
        if refusal is not None:
            self._fleet.record_scaling(key, scaling_report.refused(decision, refusal))
            return
        if 0 < state.blind_rounds < BLIND_ROUNDS:
            if not applied:
                return
            decision = replace(decision, complete=True)  # too early for the condition to say more
        recorded = None
        if applied or _is_new_dry_decision(decision, state):
            recorded = self._wall_clock().strftime("%Y-%m-%dT%H:%M:%SZ")
            direction = "up" if decision.to_replicas > decision.from_replicas else "down"
            self._metrics.decided(*key, direction, decision.reason, decision.dry_run)
            logger.info(
                "[%s] scaling from=%d to=%d reason=%s",
                key,
                decision.from_replicas,
                decision.to_replicas,
                scaling_report.sentence(config, decision),
            )
        self._fleet.record_scaling(key, scaling_report.report(config, decision, missing, recorded))


def _replicas(view: Snapshot, state: _State, now: float) -> int:
    """spec.replicas; our own write counts until the watch has brought it, or another's over it."""
    if state.written is not None:
        before, after, until = state.written
        if view.replicas == before and now < until:
            return after
        state.written = None
    return view.replicas


def _is_new_dry_decision(decision: Decision, state: _State) -> bool:
    if not decision.dry_run:
        state.dry_run_to = None
        return False
    is_new = decision.changed and decision.to_replicas != state.dry_run_to
    state.dry_run_to = decision.to_replicas if decision.changed else state.dry_run_to
    return is_new


async def run(
    world: Fleet, client: Api, settings: Settings, leader: Leader, metrics: Metrics
) -> None:
    """Scales every service until cancelled."""
    interval = settings.scrape_interval_seconds
    deadline = max(1.0, 0.6 * interval)  # a pod whose cores all compute answers in 1 s still
    async with scraper.make_session() as session:

        async def scrape(url: str) -> PodMetrics | Missing:
            return await scraper.scrape(session, url, deadline)

        async def write_scale(key: Key, replicas: int) -> None:
            await apply.scale(client, key, replicas)

        await ScalingLoop(world, write_scale, leader, scrape, metrics, interval).run()
