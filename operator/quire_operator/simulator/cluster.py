"""The simulated service: pods that nodes take or refuse, start, serve, drain and crash.

As Kubernetes does it: replicas that are lowered take first the pods that serve least (without a
node, then starting, then the youngest), and a leaving pod holds its GPU until its last request is
answered or its time to drain is over.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from heapq import heappop, heappush
from random import Random

from quire_operator.simulator.engine_model import EngineModel, Outcome, Request
from quire_operator.simulator.load import sample, stream
from quire_operator.simulator.scenario import GpuShortage, Scenario, SlowStart


class Phase(StrEnum):
    """Of a pod, in the order in which it goes through them."""

    UNSCHEDULABLE = "unschedulable"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


_LEAVES_FIRST = (Phase.UNSCHEDULABLE, Phase.STARTING, Phase.READY)


@dataclass(slots=True, eq=False)
class Pod:
    """`due`: when its present phase ends by itself, never while that is infinite."""

    name: str
    phase: Phase = Phase.UNSCHEDULABLE
    due: float = math.inf
    ready_since: float = 0.0
    engine: EngineModel | None = None

    @property
    def in_flight(self) -> int:
        return self.engine.in_flight if self.engine else 0


@dataclass(slots=True)
class Agenda:
    """What is to happen, by time; at one time in the order in which it was put down."""

    now: float = 0.0
    _entries: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._entries, (seconds, self._count, action))

    def play_until(self, seconds: float) -> None:
        """Everything that is due by then."""
        while self._entries and self._entries[0][0] <= seconds:
            self.now, _count, action = heappop(self._entries)
            action()
        self.now = seconds


class Cluster:
    """Owner of the pods. Time is the agenda's."""

    def __init__(self, scenario: Scenario, agenda: Agenda) -> None:
        self._scenario = scenario
        self._agenda = agenda
        self._starts: Random = stream(scenario, "starts")
        self._routes: Random = stream(scenario, "routes")
        self._num_created = 0
        self._pods: list[Pod] = []  # in order of creation
        self.replicas = scenario.first_replicas
        self.held: deque[Request] = deque()  # by the gateway
        for pod in [self._create() for _ in range(self.replicas)]:
            self._become_ready(pod)

    def pods(self, *phases: Phase) -> list[Pod]:
        return [pod for pod in self._pods if pod.phase in phases]

    def engines(self) -> list[EngineModel]:
        """Those that may hold requests, advanced to now."""
        engines = [pod.engine for pod in self._pods if pod.engine is not None]
        for engine in engines:
            engine.advance(self._agenda.now)
        return engines

    # ---- orders ----

    def scale(self, replicas: int) -> None:
        """spec.replicas is written."""
        self.replicas = replicas
        staying = self.pods(*_LEAVES_FIRST)
        for pod in self._leaving(staying, len(staying) - replicas):
            self._leave(pod)
        for _ in range(replicas - len(staying)):
            self._create()
        self.place()

    def place(self) -> None:
        """Nodes take what they have room for."""
        room = self._room() - len(self.pods(Phase.STARTING, Phase.READY, Phase.DRAINING))
        for pod in self.pods(Phase.UNSCHEDULABLE)[: max(0, room)]:
            self._start(pod)

    def crash(self, num_pods: int) -> None:
        """The engines of the oldest ready pods die; their containers start anew."""
        for pod in self.pods(Phase.READY)[:num_pods]:
            self._stop_engine(pod)
            self._start(pod)

    def send(self, request: Request) -> None:
        """A client asks."""
        ready = self.pods(Phase.READY)
        if ready:
            self._accept(self._chosen(ready), request)
        elif self._scenario.gateway:
            self.held.append(request)
        else:
            request.outcome = Outcome.REFUSED

    def tidy(self) -> None:
        """Pods that have drained go, and give their nodes free."""
        for pod in self.pods(Phase.DRAINING):
            assert pod.engine is not None
            pod.engine.advance(self._agenda.now)
            if not pod.in_flight or pod.due <= self._agenda.now:
                self._stop_engine(pod)
                self._pods.remove(pod)
        self.place()

    # ---- what follows ----

    def _create(self) -> Pod:
        self._num_created += 1
        pod = Pod(f"pod-{self._num_created}")
        self._pods.append(pod)
        return pod

    def _leaving(self, staying: Sequence[Pod], num_pods: int) -> list[Pod]:
        youngest_first = list(reversed(staying))
        ordered = sorted(youngest_first, key=lambda pod: _LEAVES_FIRST.index(pod.phase))
        return ordered[: max(0, num_pods)]

    def _leave(self, pod: Pod) -> None:
        if pod.phase is not Phase.READY:
            self._pods.remove(pod)
            return
        pod.phase = Phase.DRAINING
        pod.due = self._agenda.now + self._scenario.drain_seconds
        self._agenda.at(pod.due, self.tidy)

    def _start(self, pod: Pod) -> None:
        seconds = sample(self._scenario.engine.startup_seconds, self._starts)
        for fault in self._scenario.faults:
            if isinstance(fault, SlowStart) and _holds(fault, self._agenda.now):
                seconds *= fault.factor
        pod.phase = Phase.STARTING
        due = pod.due = self._agenda.now + seconds
        self._agenda.at(due, partial(self._started, pod, due))

    def _started(self, pod: Pod, due: float) -> None:
        if pod in self._pods and pod.phase is Phase.STARTING and pod.due == due:
            self._become_ready(pod)

    def _become_ready(self, pod: Pod) -> None:
        now = self._agenda.now
        pod.phase, pod.due, pod.ready_since = Phase.READY, math.inf, now
        pod.engine = EngineModel(self._scenario.engine, now)
        held, self.held = self.held, deque()
        for request in held:
            self._accept(self._chosen(self.pods(Phase.READY)), request)

    def _stop_engine(self, pod: Pod) -> None:
        assert pod.engine is not None
        pod.engine.advance(self._agenda.now)
        pod.engine.abort()
        pod.engine = None

    def _accept(self, pod: Pod, request: Request) -> None:
        assert pod.engine is not None
        pod.engine.advance(self._agenda.now)
        pod.engine.accept(request, self._agenda.now)

    def _chosen(self, ready: Sequence[Pod]) -> Pod:
        if self._scenario.router == "random":
            return self._routes.choice(ready)
        self.engines()
        return min(ready, key=lambda pod: pod.in_flight)

    def _room(self) -> int:
        limits = (
            fault.max_pods
            for fault in self._scenario.faults
            if isinstance(fault, GpuShortage) and _holds(fault, self._agenda.now)
        )
        return min(limits, default=sys.maxsize)


def _holds(fault: GpuShortage | SlowStart, now: float) -> bool:
    return fault.from_seconds <= now < fault.to_seconds
