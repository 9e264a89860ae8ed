"""Runs a scenario: the operator's own scaling loop over simulated pods, in virtual time.

The loop is the real one (`scaling_loop.ScalingLoop`), with its real scraper's parser, histograms,
history, `decide` and `remember`; only what lies around it is simulated: the pods' /metrics pages,
the API server that takes /scale, the clocks. So a scenario shows what the operator would do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from quire_operator import api, scraper
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.scaling_loop import ScalingLoop
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.simulator.cluster import Agenda, Cluster, Phase, Pod
from quire_operator.simulator.engine_model import Request
from quire_operator.simulator.load import Arrival
from quire_operator.simulator.metrics_page import page
from quire_operator.simulator.scenario import GpuShortage, MetricsOutage, PodCrash, Scenario
from quire_operator.world import PodEndpoint, ScalingReport, Snapshot

KEY = Key("simulated", "service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The service right after one round of the scaler. `reason`: of its condition Scaling."""

    seconds: float
    replicas: int
    ready: int
    starting: int
    unschedulable: int
    draining: int
    waiting: int
    running: int
    held: int
    kv_utilization: float
    reason: str

    @property
    def queue(self) -> int:
        """Requests that wait, on a pod or in the gateway."""
        return self.waiting + self.held

    @property
    def on_nodes(self) -> int:
        """Pods that hold a GPU."""
        return self.ready + self.starting + self.draining


@dataclass(frozen=True, slots=True)
class Change:
    """spec.replicas was moved. `why` begins with the reason and a colon."""

    seconds: float
    before: int
    after: int
    why: str

    @property
    def reason(self) -> str:
        return self.why.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Record:
    """All that happened."""

    scenario: Scenario
    requests: tuple[Request, ...]
    samples: tuple[Sample, ...]
    changes: tuple[Change, ...]


def run(scenario: Scenario, arrivals: Sequence[Arrival]) -> Record:
    """The whole scenario; its events are a function of the two arguments alone."""
    return asyncio.run(_Simulation(scenario, arrivals).run())


class _Simulation:
    """What the loop takes for the world, the API server and the leader's guard."""

    is_leader = True

    def __init__(self, scenario: Scenario, arrivals: Sequence[Arrival]) -> None:
        self._scenario = scenario
        self._spec = api.Spec(
            model=api.Model(uri="hf://simulated/model"),
            engine=api.Engine(max_num_seqs=scenario.engine.max_num_seqs),
            scaling=scenario.scaling,
        )
        self._agenda = Agenda()
        self._cluster = Cluster(scenario, self._agenda)
        self._requests = [
            Request(arrival.seconds, arrival.prompt_tokens, arrival.answer_tokens)
            for arrival in arrivals
        ]
        self._samples: list[Sample] = []
        self._changes: list[Change] = []
        self._report = ScalingReport(None, "Unknown", "NotLooked", "")
        self._plan()

    async def run(self) -> Record:
        interval = self._scenario.interval_seconds
        loop = ScalingLoop(
            fleet=self,
            write_scale=self._write_scale,
            leader=self,
            scrape=self._scrape,
            metrics=Metrics(clock=self._clock),
            interval_seconds=interval,
            clock=self._clock,
            sleep=_never,
            wall_clock=self._wall_clock,
        )
        num_rounds = int(self._scenario.duration_seconds / interval)
        for index in range(num_rounds + 1):
            self._agenda.play_until(index * interval)
            self._cluster.tidy()
            await loop.run_round()
            self._sample()
        self._agenda.play_until(self._scenario.duration_seconds)
        self._cluster.engines()
        return Record(
            self._scenario, tuple(self._requests), tuple(self._samples), tuple(self._changes)
        )

    def _plan(self) -> None:
        for fault in self._scenario.faults:
            if isinstance(fault, PodCrash):
                self._agenda.at(fault.at_seconds, partial(self._cluster.crash, fault.pods))
            if isinstance(fault, GpuShortage):
                self._agenda.at(fault.to_seconds, self._cluster.place)
        for request in self._requests:
            self._agenda.at(request.arrived, partial(self._cluster.send, request))

    def _sample(self) -> None:
        cluster = self._cluster
        ready = cluster.pods(Phase.READY)
        engines = cluster.engines()
        used = sum(pod.engine.kv_utilization for pod in ready if pod.engine is not None)
        self._samples.append(
            Sample(
                seconds=self._agenda.now,
                replicas=cluster.replicas,
                ready=len(ready),
                starting=len(cluster.pods(Phase.STARTING)),
                unschedulable=len(cluster.pods(Phase.UNSCHEDULABLE)),
                draining=len(cluster.pods(Phase.DRAINING)),
                waiting=sum(engine.num_waiting for engine in engines),
                running=sum(engine.num_running for engine in engines),
                held=len(cluster.held),
                kv_utilization=used / len(ready) if ready else 0.0,
                reason=self._report.reason,
            )
        )

    # ---- what the loop sees ----

    def keys(self) -> Sequence[Key]:
        return [KEY]

    def snapshot(self, key: Key) -> Snapshot | None:
        cluster = self._cluster
        starting = cluster.pods(Phase.STARTING)
        return Snapshot(
            key=key,
            spec=self._spec,
            replicas=cluster.replicas,
            ready_pods=tuple(map(self._endpoint, cluster.pods(Phase.READY))),
            starting=tuple(pod.name for pod in starting),
            pending=0,
            unschedulable=len(cluster.pods(Phase.UNSCHEDULABLE)),
            draining=len(cluster.pods(Phase.DRAINING)),
            deleting=False,
            activated=bool(cluster.held),
            gateway_ready=self._scenario.gateway,
        )

    def record_scaling(self, key: Key, report: ScalingReport) -> None:
        self._report = report
        if report.decision is not None:
            decision = report.decision
            self._changes.append(
                Change(
                    self._agenda.now, decision.from_replicas, decision.to_replicas, decision.reason
                )
            )

    async def _write_scale(self, key: Key, replicas: int) -> None:
        self._cluster.scale(replicas)

    async def _scrape(self, url: str) -> PodMetrics | Missing:
        pods = self._cluster.pods(Phase.READY)
        index, pod = next((i, pod) for i, pod in enumerate(pods) if _url(pod) == url)
        if self._silent(index):
            return Missing("did not answer within 3 s")
        assert pod.engine is not None
        pod.engine.advance(self._agenda.now)
        return scraper.parse(page(pod.engine, self._agenda.now))

    def _silent(self, index: int) -> bool:
        """Whether the metrics of the pod that is so many places from the oldest cannot be read."""
        now = self._agenda.now
        return any(
            fault.from_seconds <= now < fault.to_seconds
            and (fault.pods is None or index < fault.pods)
            for fault in self._scenario.faults
            if isinstance(fault, MetricsOutage)
        )

    def _endpoint(self, pod: Pod) -> PodEndpoint:
        since = self._scenario.start.timestamp() + pod.ready_since
        return PodEndpoint(pod.name, pod.name, 8000, "simulated", since)

    def _clock(self) -> float:
        return self._agenda.now

    def _wall_clock(self) -> datetime:
        return self._scenario.start + timedelta(seconds=self._agenda.now)


def _url(pod: Pod) -> str:
    return scraper.metrics_url(pod.name, 8000)


async def _never(seconds: float) -> None:
    raise AssertionError(f"one service is no reason to spread a round over {seconds} s")
