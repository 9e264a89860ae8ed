"""One loop for all services: scrape their ready pods, decide, write /scale, report.

Every replica of the operator runs it, so that a new leader knows the load already; only the leader
writes. Services that an HPA or KEDA scales are scraped too, for those to ask us (`readings`).
Services are started one after another over half of the interval and end on their own: a service
whose pods hang costs itself its deadline and the others nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from quire_operator import apply, names, scaling_report, scraper
from quire_operator.client import Api
from quire_operator.errors import ApiError, Conflict, NotFound, NotLeader
from quire_operator.events import Note, manifest
from quire_operator.kinds import Manifest
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.readings import Reading, Readings
from quire_operator.scaling import (
    Decision,
    Observation,
    Reason,
    ScalingConfig,
    decide,
    remember,
)
from quire_operator.scaling_config import GAP_ROUNDS, TTFT_WINDOW_ROUNDS, MinimumNow, config_of
from quire_operator.scaling_events import Turns, moved
from quire_operator.scaling_history import History
from quire_operator.scaling_load import measure
from quire_operator.scaling_pods import PodMemory, Said
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.settings import Settings
from quire_operator.values import timestamp
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


SCRAPED_MODES = frozenset({"builtin", "hpa", "keda"})

Scrape = Callable[[str], Awaitable[PodMetrics | Missing]]
WriteScale = Callable[[Key, int], Awaitable[None]]
Post = Callable[[Manifest], Awaitable[None]]


async def _post_nothing(event: Manifest) -> None:
    return None


@dataclass(slots=True)
class _State:
    """What the loop keeps of one service; `pods` whoever scales it, the rest while we do."""

    pods: PodMemory
    history: History = field(default_factory=History)
    minimum: MinimumNow = field(default_factory=MinimumNow)
    turns: Turns = field(default_factory=Turns)
    blind_rounds: int = 0
    written: tuple[int, int, float] | None = None  # our last write: from, to, believed until
    dry_run_to: int | None = None  # the last dry decision that was recorded


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a decision. refusal: the API server's words."""

    applied: bool = False
    refusal: str | None = None


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
        readings: Readings | None = None,
        post: Post = _post_nothing,
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
        self._readings = readings or Readings()
        self._post = post
        self._states: dict[Key, _State] = {}
        self._serving: set[Key] = set()
        self._hurried: set[asyncio.Task[None]] = set()

    def hurry(self, key: Key) -> None:
        """Looks at a service that is asleep at once: somebody waits for it to wake."""
        view = self._fleet.snapshot(key)
        if view is None or view.replicas > 0:
            return
        task = asyncio.get_running_loop().create_task(self._guarded(key))
        self._hurried.add(task)
        task.add_done_callback(self._hurried.discard)

    async def run(self) -> None:
        """Rounds at a fixed pace until cancelled. The next one waits until every service has been
        started, not until all have ended: who still waits for a pod is left out of it."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                started = self._clock()
                serving = await self._start_all(tasks)
                tasks.create_task(self._time(started, serving))
                await self._sleep(max(0.0, self._interval - (self._clock() - started)))

    async def run_round(self) -> None:
        """One round, to its end."""
        async with asyncio.TaskGroup() as tasks:
            await self._start_all(tasks)

    async def _start_all(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        keys = list(self._fleet.keys())
        self._forget_all_but(set(keys))
        num_slices = -(-len(keys) // SLICE)
        serving = []
        for index in range(num_slices):
            if index:  # spread out, so that answers do not queue behind each other's parsing
                await self._sleep(self._interval / 2 / num_slices)
            for key in keys[index * SLICE : (index + 1) * SLICE]:
                serving.append(tasks.create_task(self._guarded(key)))
        return serving

    async def _time(self, started: float, serving: list[asyncio.Task[None]]) -> None:
        if serving:
            await asyncio.wait(serving)
        self._metrics.round_took(self._clock() - started)

    async def _guarded(self, key: Key) -> None:
        if key in self._serving:
            return  # its last round has not ended
        self._serving.add(key)
        try:
            await self._serve(key)
        except Exception:  # the wall between services: one's defect must not stop the others
            logger.exception("[%s] scaling failed in this round", key)
        finally:
            self._serving.discard(key)

    def _forget_all_but(self, keys: set[Key]) -> None:
        for key in self._states.keys() - keys:
            del self._states[key]
            self._readings.forget(key)
            self._metrics.forget(*key)

    async def _serve(self, key: Key) -> None:
        view = self._fleet.snapshot(key)
        if view is None or view.deleting:
            return
        self._metrics.replicas(*key, desired=view.replicas, ready=len(view.ready_pods))
        state = self._states.setdefault(key, _State(self._new_memory()))
        if view.spec.scaling.mode not in SCRAPED_MODES:
            self._states[key] = _State(self._new_memory())
            self._readings.forget(key)
            return
        answers = await self._ask(view.ready_pods)
        said = state.pods.hear(self._clock(), answers, view.starting)
        config = config_of(view.spec, state.minimum(view.spec, self._wall_clock()), self._interval)
        seen = self._observe(view, state, said)
        self._read(key, config, seen, said)
        self._metrics.scraped(len(said.loads), len(answers) - len(said.loads))
        if view.spec.scaling.mode != "builtin" or view.other_writer is not None:
            # another's history is not ours to conclude from
            blind_rounds = state.blind_rounds
            state = self._states[key] = _State(state.pods, minimum=state.minimum)
            self._stand_aside(view, state, blind_rounds)
            return
        decision = decide(config, state.history, seen)
        outcome = await self._follow(view, decision, state)
        state.history = remember(config, state.history, decision, applied=outcome.applied)
        await self._tell(view, config, decision, state, said.missing, outcome)

    def _new_memory(self) -> PodMemory:
        return PodMemory(TTFT_WINDOW_ROUNDS * self._interval, GAP_ROUNDS * self._interval)

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

    def _read(self, key: Key, config: ScalingConfig, seen: Observation, said: Said) -> None:
        load = measure(config, seen)
        if load.complete:
            self._metrics.complete(*key)
        inputs = load.inputs
        reading = Reading(
            at=seen.now,
            wall=self._wall_clock().timestamp(),
            ready=seen.ready,
            complete=load.complete,
            loads_complete=measure(replace(config, ttft_seconds=None), seen).complete,
            missing=said.missing,
            waiting=inputs.waiting,
            running=inputs.running,
            kv_cache_utilization=inputs.kv_cache_utilization,
            ttft_p95_seconds=inputs.ttft_p95_seconds,
            idle=load.idle,
        )
        self._readings.put(key, reading)

    def _stand_aside(self, view: Snapshot, state: _State, blind_rounds: int) -> None:
        if view.spec.scaling.mode != "builtin":
            self._tell_for_others(view, state, blind_rounds)
        elif view.other_writer is not None:
            self._fleet.record_scaling(view.key, scaling_report.not_alone(view.other_writer))

    def _tell_for_others(self, view: Snapshot, state: _State, blind_rounds: int) -> None:
        """What an HPA or KEDA does not get, told before they notice."""
        reading = self._readings.get(view.key)
        assert reading is not None  # of this round
        is_blind = reading.ready > 0 and not reading.complete
        state.blind_rounds = blind_rounds + 1 if is_blind else 0
        if not 0 < state.blind_rounds < BLIND_ROUNDS:
            self._fleet.record_scaling(view.key, scaling_report.passed_on(reading))

    async def _follow(self, view: Snapshot, decision: Decision, state: _State) -> _Outcome:
        """Writes what was decided, if it still stands: the scrape may have taken seconds."""
        key = view.key
        if not decision.changed or decision.dry_run or not self._leader.is_leader:
            return _Outcome()
        if _has_changed(view, decision, self._fleet.snapshot(key)):
            return _Outcome()
        try:
            async with asyncio.timeout(max(5.0, self._interval)):
                await self._write_scale(key, decision.to_replicas)
        except (NotLeader, NotFound, Conflict):
            return _Outcome()  # another leads, the service is gone, or it changed just now
        except TimeoutError:
            return _Outcome(refusal="the API server did not answer in time")
        except ApiError as error:
            logger.warning("[%s] cannot write /scale: %s", key, error)
            return _Outcome(refusal=error.message)
        until = self._clock() + WRITE_SHOWS_ROUNDS * self._interval
        state.written = (decision.from_replicas, decision.to_replicas, until)
        return _Outcome(applied=True)

    async def _tell(
        self,
        view: Snapshot,
        config: ScalingConfig,
        decision: Decision,
        state: _State,
        missing: tuple[str, ...],
        outcome: _Outcome,
    ) -> None:
        state.blind_rounds = state.blind_rounds + 1 if decision.blindness else 0
        if outcome.refusal is not None:
            await self._report(view, state, scaling_report.refused(decision, outcome.refusal))
            return
        if decision.reason is Reason.IDLE and not (outcome.applied or decision.dry_run):
            return  # it does not sleep after all, or another puts it to sleep
        if 0 < state.blind_rounds < BLIND_ROUNDS:
            if not outcome.applied:
                return
            decision = replace(decision, complete=True)  # too early for the condition to say more
        recorded = None
        if outcome.applied or _is_new_dry_decision(decision, state):
            recorded = timestamp(self._wall_clock().timestamp())
            self._count(view.key, config, decision)
        if outcome.applied:
            await self._announce(view, moved(config, decision))
        report = scaling_report.report(config, decision, missing, recorded)
        await self._report(view, state, report)

    async def _report(self, view: Snapshot, state: _State, report: ScalingReport) -> None:
        self._fleet.record_scaling(view.key, report)
        note = state.turns.note(report, self._clock())
        if note is not None:
            await self._announce(view, note)

    async def _announce(self, view: Snapshot, note: Note) -> None:
        """Posts an Event. That one is lost is logged, and stops nothing."""
        if not self._leader.is_leader:
            return
        try:
            async with asyncio.timeout(max(5.0, self._interval)):
                now, teller = self._wall_clock(), names.MANAGER_SCALER
                await self._post(manifest(view.key, view.uid, note, now, teller))
        except (ApiError, NotLeader, TimeoutError) as error:
            logger.warning("[%s] event %s not posted: %r", view.key, note.reason, error)

    def _count(self, key: Key, config: ScalingConfig, decision: Decision) -> None:
        direction = "up" if decision.to_replicas > decision.from_replicas else "down"
        self._metrics.decided(*key, direction, decision.reason, decision.dry_run)
        logger.info(
            "[%s] scaling from=%d to=%d reason=%s",
            key,
            decision.from_replicas,
            decision.to_replicas,
            scaling_report.sentence(config, decision),
        )


def _has_changed(view: Snapshot, decision: Decision, now: Snapshot | None) -> bool:
    """Whether what was decided on does not stand any more: another mode, another's number; and for
    sleep, that nobody holds requests and somebody would."""
    if now is None or now.deleting or now.other_writer is not None:
        return True
    if decision.to_replicas == 0 and (now.activated or not now.gateway_ready):
        return True
    return now.spec.scaling != view.spec.scaling or now.replicas != view.replicas


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
    world: Fleet,
    client: Api,
    settings: Settings,
    leader: Leader,
    metrics: Metrics,
    readings: Readings,
    on_start: Callable[[ScalingLoop], None] = lambda loop: None,
) -> None:
    """Scales every service until cancelled. `on_start` is given the loop, to `hurry` it."""
    interval = settings.scrape_interval_seconds
    deadline = max(1.0, 0.6 * interval)  # a pod whose cores all compute answers in 1 s still

    async def scrape(url: str) -> PodMetrics | Missing:
        return await scraper.scrape(url, deadline)

    async def write_scale(key: Key, replicas: int) -> None:
        view = world.snapshot(key)
        version = view.resource_version if view else ""
        await apply.scale(client, key, replicas, version)

    async def post(event: Manifest) -> None:
        await client.create(event, names.MANAGER_SCALER)

    loop = ScalingLoop(
        world,
        write_scale,
        leader,
        scrape,
        metrics,
        interval,
        readings=readings,
        post=post,
    )
    on_start(loop)
    await loop.run()
