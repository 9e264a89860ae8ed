"""What the scaler sees, is told and answers: the words of `scaling.decide`. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

from quire_operator.scaling_history import Windows


class Reason(StrEnum):
    """Why a decision came out as it did. The first eight move replicas, the others hold them."""

    QUEUE_DEPTH = "QueueDepth"
    TTFT = "TimeToFirstToken"
    KV_CACHE = "KVCacheUtilization"
    LOAD_FITS_FEWER = "LoadFitsFewer"
    BELOW_MINIMUM = "BelowMinReplicas"
    ABOVE_MAXIMUM = "AboveMaxReplicas"
    IDLE = "Idle"
    ACTIVATED = "Activated"

    INSIDE_TARGETS = "InsideTargets"
    AT_MAXIMUM = "AtMaxReplicas"
    PODS_PENDING = "PodsPending"
    PODS_UNSCHEDULABLE = "PodsUnschedulable"
    STABILIZING = "Stabilizing"
    METRICS_MISSING = "MetricsMissing"
    METRICS_PARTIAL = "MetricsPartial"
    NO_READY_PODS = "NoReadyPods"
    PAUSED = "Paused"
    ASLEEP = "Asleep"
    NO_GATEWAY = "NoGateway"
    INVALID_SCHEDULE = "InvalidSchedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """What the service's owner asked for. A target of None is not looked at. Times are seconds."""

    min_replicas: int = 1  # the one in force now, schedules included
    max_replicas: int = 4
    queue_depth: float | None = 4.0  # waiting requests per ready replica
    ttft_seconds: float | None = None  # 95th percentile
    kv_cache_utilization: float | None = 0.9  # mean over the pods, 0..1
    slots: int | None = None  # requests that a pod runs at once, where pods do not say so
    max_up_step: int | None = None  # None: as many as are ready
    max_down_step: int = 1
    up_window_seconds: float = 0.0
    down_window_seconds: float = 300.0
    down_step_seconds: float = 60.0  # from one step down to the next: its effect must be visible
    settle_seconds: float = 60.0  # TTFT looks back this far; a pod younger than that is not in it
    gap_seconds: float = 15.0  # a silence longer than this restarts the windows
    idle_seconds_to_zero: float | None = None  # None: never to zero
    schedule: str | None = None  # what set min_replicas, in words
    schedule_errors: tuple[str, ...] = ()  # schedules that are not understood
    dry_run: bool = False

    @property
    def windows(self) -> Windows:
        return Windows(self.up_window_seconds, self.down_window_seconds, self.gap_seconds)


@dataclass(frozen=True, slots=True)
class PodLoad:
    """One ready pod's fresh metrics; None where its page lacks the metric.

    slots: the most requests that it runs at once, if known; arrivals: requests that ended on it
    since it was last asked, so above 0 it was not idle in between, whatever it runs now.
    """

    waiting: float | None
    running: float | None
    kv_cache_utilization: float | None
    slots: int | None = None
    arrivals: float | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running or self.arrivals)


@dataclass(frozen=True, slots=True)
class Ttft:
    """Time to first token over the window. `count` 0: nothing was asked, which is not missing."""

    p95_seconds: float
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One service as it is. `now`: seconds on any steady clock. Pods are told apart:

    ready: they serve; starting: on a node, not ready yet; pending: no node yet, or not created
    yet; unschedulable: no node takes them; draining: on their way out, no capacity, and their load
    is not counted. replicas: spec.replicas. loads: the ready pods that answered this round (silent,
    stale and nonsensical ones are simply not in it); doubtful: pods that began anew or were lost a
    moment ago, so that the numbers may raise but not lower; ttft: None when it cannot be known;
    activated: somebody holds requests for the service; gateway_ready: somebody would, at zero.
    """

    now: float
    replicas: int
    ready: int
    starting: int = 0
    pending: int = 0
    unschedulable: int = 0
    draining: int = 0
    loads: tuple[PodLoad, ...] = ()
    doubtful: int = 0
    ttft: Ttft | None = None
    activated: bool = False
    gateway_ready: bool = False

    @property
    def on_their_way(self) -> int:
        """Capacity that comes by itself; an unschedulable pod may never come."""
        return self.starting + self.pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The numbers behind a decision. A ratio above 1 is a target exceeded, None one not known."""

    ready: int
    starting: int
    pending: int
    unschedulable: int
    draining: int
    reporting: int
    waiting: float | None = None
    running: float | None = None
    kv_cache_utilization: float | None = None
    ttft_p95_seconds: float | None = None
    arrivals: float | None = None
    ratios: dict[Reason, float | None] = field(default_factory=dict)

    @property
    def known(self) -> dict[Reason, float]:
        return {name: ratio for name, ratio in self.ratios.items() if ratio is not None}

    @property
    def worst(self) -> tuple[Reason, float]:
        """The target that asks for most. Only with `known` not empty."""
        return max(self.known.items(), key=lambda item: item[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`time` is the observation's. `to_replicas` equals `from_replicas` when nothing changes.

    need: the fewest replicas that keep the load inside the targets, None when that is not known;
    complete: nothing was missing; idle: nothing ran, waited or came, None when that is not known.
    """

    time: float
    from_replicas: int
    to_replicas: int
    reason: Reason
    inputs: Inputs
    need: int | None
    complete: bool
    idle: bool | None
    dry_run: bool

    @property
    def changed(self) -> bool:
        return self.to_replicas != self.from_replicas

    @property
    def blindness(self) -> Reason | None:
        """What is wrong with the metrics, whatever was decided on the rest of them."""
        if self.complete or self.inputs.ready == 0 or self.from_replicas == 0:
            return None
        return Reason.METRICS_MISSING if self.need is None else Reason.METRICS_PARTIAL
