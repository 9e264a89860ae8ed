"""A service in miniature, for `decide` to be tried on: pods that come and go, a queue, faults.

Whole rounds, whole requests, no randomness: the same scenario always lives the same life. It knows
the truth (what waits, what was told to the scaler and what was not), so that tests can judge.
"""

from dataclasses import dataclass, field
from math import ceil

from quire_operator.scaling import Observation, PodLoad, ScalingConfig, Ttft

DRAIN_ROUNDS = 2
TTFT_ROUNDS = 3  # p95 looks back
DOUBT_ROUNDS = 3


@dataclass
class Service:
    """room: pods that the nodes take; the rest is unschedulable. surge: pods of a rollout, beside
    those that are asked for."""

    slots: int = 4
    rounds_to_start: int = 3
    room: int = 64
    surge: int = 0
    replicas: int = 1
    ready: int = 1
    pending: int = 0
    unschedulable: int = 0
    starting: list[int] = field(default_factory=list)  # rounds left, each
    draining: list[int] = field(default_factory=list)
    waiting: int = 0
    running: int = 0
    unseen: int = 0  # requests that ended since all pods last answered
    ended: int = 0
    doubt: int = 0  # rounds for which a pod is doubted
    ttfts: list[float] = field(default_factory=list)

    # ---- a round passes ----

    def step(self, arrivals: int, done: float, flash: bool = False) -> None:
        """`arrivals` come, the part `done` of what runs ends; `flash`: one comes and ends at once,
        so that no look ever sees it."""
        ended = ceil(self.running * done)
        self.running -= ended
        self.waiting += arrivals
        self._move_pods()
        moved = min(self.waiting, max(0, self.ready * self.slots - self.running))
        self.waiting -= moved
        self.running += moved
        ended += bool(flash and self.ready)
        self.unseen += ended
        self.ended += ended
        self.doubt = max(0, self.doubt - 1)
        self._note_ttft()

    def crash(self) -> None:
        """A ready pod dies and starts again; its requests come back to the others' queue."""
        if self.ready == 0:
            return
        self.ready -= 1
        self.starting.append(self.rounds_to_start + 1)
        returned = max(0, self.running - self.ready * self.slots)
        self.running -= returned
        self.waiting += returned
        self.doubt = DOUBT_ROUNDS

    def _move_pods(self) -> None:
        self.draining = [left - 1 for left in self.draining if left > 1]
        self.starting = [left - 1 for left in self.starting]
        self.ready += sum(left <= 0 for left in self.starting)
        self.starting = [left for left in self.starting if left > 0]
        wanted = self.replicas + self.surge
        self._remove(self.present - wanted)
        waiting_for_node, self.pending = self.pending + self.unschedulable, 0
        free = self.room - self.ready - len(self.starting) - len(self.draining)
        placed = max(0, min(waiting_for_node, free))
        self.starting += [self.rounds_to_start] * placed
        self.unschedulable = waiting_for_node - placed
        self.pending = max(0, wanted - self.present)

    def _remove(self, surplus: int) -> None:
        """Pods without a node first, then those that start, as a ReplicaSet does."""
        for _ in range(surplus):
            if self.unschedulable:
                self.unschedulable -= 1
            elif self.pending:
                self.pending -= 1
            elif self.starting:
                self.starting.pop()
            else:
                self.ready -= 1
                self.draining.append(DRAIN_ROUNDS)
        lost = max(0, self.running - self.ready * self.slots)
        self.running -= lost  # a draining pod finishes what it has
        self.unseen += lost
        self.ended += lost

    def _note_ttft(self) -> None:
        per_pod = self.waiting / max(1, self.ready)
        self.ttfts = [*self.ttfts[1 - TTFT_ROUNDS :], 0.05 + 0.2 * per_pod if self.is_busy else 0.0]

    # ---- what is true ----

    @property
    def present(self) -> int:
        return self.ready + len(self.starting) + self.pending + self.unschedulable

    @property
    def on_their_way(self) -> int:
        return len(self.starting) + self.pending

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def kv_cache_utilization(self) -> float:
        return min(1.0, self.running / max(1, self.ready * self.slots))

    def need(self, config: ScalingConfig) -> int:
        """Replicas that the load takes, worked out apart from the scaler's own way."""
        needs = [1.0]
        if config.queue_depth is not None:
            needs.append(self.waiting / config.queue_depth)
        if config.ttft_seconds is not None:
            needs.append(self.ready * max(self.ttfts) / config.ttft_seconds)
        if config.kv_cache_utilization is not None:
            needs.append(self.ready * self.kv_cache_utilization / config.kv_cache_utilization)
        return max(ceil(need - 1e-6) for need in needs)

    # ---- what is told ----

    def observe(self, now: float, *, silent: int = 0, **told: bool) -> Observation:
        """`silent`: ready pods that give nothing; told: no_ttft, activated, gateway_ready."""
        answering = max(0, self.ready - silent)
        load = PodLoad(
            self.waiting / max(1, self.ready),
            self.running / max(1, self.ready),
            self.kv_cache_utilization,
            self.slots,
            self.unseen / max(1, self.ready),
        )
        if answering == self.ready > 0:
            self.unseen = 0
        return Observation(
            now=now,
            replicas=self.replicas,
            ready=self.ready,
            starting=len(self.starting),
            pending=self.pending,
            unschedulable=self.unschedulable,
            draining=len(self.draining),
            loads=(load,) * answering,
            doubtful=int(self.doubt > 0),
            ttft=None if told.get("no_ttft") else Ttft(max(self.ttfts), 1),
            activated=told.get("activated", False),
            gateway_ready=told.get("gateway_ready", False),
        )
