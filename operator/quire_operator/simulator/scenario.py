"""What a scenario file says, as types: `kubectl quire simulate SCENARIO.yaml`.

Every field says its unit, its default and what follows from it; operator/docs/README.md tells the
same with examples. Unknown keys and bad values are refused when the file is read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from quire_operator import api

WEEK = 604_800

Moment = Annotated[float, Meta(ge=0, le=WEEK)]
Duration = Annotated[float, Meta(gt=0, le=WEEK)]
Rate = Annotated[float, Meta(ge=0, le=10_000)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class _Part(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of a scenario: camelCase in the file, no unknown keys."""


# ---- distributions ----


class Uniform(_Part, frozen=True, tag_field="kind", tag="uniform"):
    """Any value between the two, all alike."""

    min: Positive
    max: Positive

    def __post_init__(self) -> None:
        _at_least("max", self.max, "min", self.min)


class Exponential(_Part, frozen=True, tag_field="kind", tag="exponential"):
    """Many short ones, few long ones; cut off at `max`, unless that is left out."""

    mean: Positive
    max: Positive | None = None

    def __post_init__(self) -> None:
        if self.max is not None:
            _at_least("max", self.max, "mean", self.mean)


class LogNormal(_Part, frozen=True, tag_field="kind", tag="lognormal"):
    """As prompts and answers usually are: half below `median`, one of twenty above `p95`."""

    median: Positive
    p95: Positive
    max: Positive | None = None

    def __post_init__(self) -> None:
        _at_least("p95", self.p95, "median", self.median)
        if self.max is not None:
            _at_least("max", self.max, "p95", self.p95)


Distribution = Positive | Uniform | Exponential | LogNormal
"""A number alone is always that number."""


# ---- load ----


class ConstantPhase(_Part, frozen=True, tag_field="kind", tag="constant"):
    """Requests come at random (Poisson) at one rate."""

    duration_seconds: Duration
    per_second: Rate
    start_seconds: Moment = 0.0


class RampPhase(_Part, frozen=True, tag_field="kind", tag="ramp"):
    """The rate goes evenly from one to the other."""

    duration_seconds: Duration
    from_per_second: Rate
    to_per_second: Rate
    start_seconds: Moment = 0.0


class SinePhase(_Part, frozen=True, tag_field="kind", tag="sine"):
    """The rate swings about its mean and begins at its lowest."""

    duration_seconds: Duration
    mean_per_second: Rate
    amplitude_per_second: Rate
    period_seconds: Duration
    start_seconds: Moment = 0.0

    def __post_init__(self) -> None:
        _at_least(
            "meanPerSecond", self.mean_per_second, "amplitudePerSecond", self.amplitude_per_second
        )


class BurstPhase(_Part, frozen=True, tag_field="kind", tag="burst"):
    """So many requests, at random moments within the phase."""

    requests: Count
    duration_seconds: Duration = 1.0
    start_seconds: Moment = 0.0


Phase = ConstantPhase | RampPhase | SinePhase | BurstPhase


class Lengths(_Part, frozen=True):
    """Tokens of each request of the phases."""

    prompt: Distribution = 256.0
    answer: Distribution = 128.0


class Load(_Part, frozen=True):
    """`phases`, which add up where they overlap, or `trace`: the path, from the scenario's folder,
    of a CSV file with the columns seconds, prompt_tokens, answer_tokens."""

    phases: list[Phase] = field(default_factory=list)
    lengths: Lengths = Lengths()
    trace: Annotated[str, Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if bool(self.phases) == (self.trace is not None):
            got = "both" if self.phases else "neither"
            raise ValueError(f"must hold either phases or trace, got {got}; keep one of them")


# ---- engine ----


class Engine(_Part, frozen=True):
    """One replica. Measure your own: the engine's /metrics and logs hold all of these.

    decode_step_seconds: of a step with that many sequences; between two of them linear, beyond the
    last at the last slope. tokens_per_step: a longer prompt takes several steps.
    kv_tokens: what the KV cache holds. startup_seconds: from a node's yes to ready.
    """

    prefill_tokens_per_second: Positive
    decode_step_seconds: dict[Count, Positive]
    max_num_seqs: Count
    kv_tokens: Annotated[int, Meta(ge=16)]
    startup_seconds: Distribution
    tokens_per_step: Count = 2048

    def __post_init__(self) -> None:
        if not self.decode_step_seconds:
            raise ValueError(
                "decodeStepSeconds must hold a step's seconds, got none; write {1: 0.02}"
            )
        ordered = [self.decode_step_seconds[size] for size in sorted(self.decode_step_seconds)]
        if ordered != sorted(ordered):
            raise ValueError(
                f"decodeStepSeconds must not fall as the batch grows, got {ordered}; measure again"
            )
        if self.tokens_per_step < self.max_num_seqs:
            raise ValueError(
                f"tokensPerStep must be >= maxNumSeqs ({self.max_num_seqs}), as each sequence "
                f"takes one token a step, got {self.tokens_per_step}; raise it"
            )


# ---- faults ----


class MetricsOutage(_Part, frozen=True, tag_field="kind", tag="metricsOutage"):
    """The metrics of the oldest `pods` cannot be read, of all pods when that is left out."""

    from_seconds: Moment
    to_seconds: Moment
    pods: Count | None = None

    def __post_init__(self) -> None:
        _at_least("toSeconds", self.to_seconds, "fromSeconds", self.from_seconds)


class GpuShortage(_Part, frozen=True, tag_field="kind", tag="gpuShortage"):
    """Nodes take no more than `maxPods` pods; those that run already stay."""

    from_seconds: Moment
    to_seconds: Moment
    max_pods: Annotated[int, Meta(ge=0, le=1000)]

    def __post_init__(self) -> None:
        _at_least("toSeconds", self.to_seconds, "fromSeconds", self.from_seconds)


class PodCrash(_Part, frozen=True, tag_field="kind", tag="podCrash"):
    """The engines of the oldest `pods` ready pods die with their requests and start anew."""

    at_seconds: Moment
    pods: Count = 1


class SlowStart(_Part, frozen=True, tag_field="kind", tag="slowStart"):
    """Pods that a node takes in that time need so many times as long to start."""

    from_seconds: Moment
    to_seconds: Moment
    factor: Positive

    def __post_init__(self) -> None:
        _at_least("toSeconds", self.to_seconds, "fromSeconds", self.from_seconds)


Fault = MetricsOutage | GpuShortage | PodCrash | SlowStart


class Scenario(_Part, frozen=True):
    """One service over `duration_seconds`.

    scaling: spec.scaling of an InferenceService, mode builtin. start: the wall-clock time at second
    0, which only schedules look at. replicas: spec.replicas at second 0, ready then; default
    scaling.minReplicas. interval_seconds: from one round of the scaler to the next, as
    QUIRE_SCRAPE_INTERVAL_SECONDS. drain_seconds: as spec.rollout.drainSeconds. router: who gets a
    request, any ready pod (what a Service does) or the one with the fewest. gateway: requests
    that find no ready pod are held and wake a sleeping service, instead of being refused.
    """

    duration_seconds: Duration
    scaling: api.Scaling
    engine: Engine
    load: Load
    faults: list[Fault] = field(default_factory=list)
    interval_seconds: Annotated[float, Meta(ge=1, le=300)] = 5.0
    seed: int = 0
    start: Annotated[datetime, Meta(tz=True)] = datetime(2026, 1, 5, tzinfo=UTC)
    replicas: Annotated[int, Meta(ge=0, le=1000)] | None = None
    drain_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 120.0
    router: Literal["random", "least-loaded"] = "random"
    gateway: bool = False

    def __post_init__(self) -> None:
        scaling = self.scaling
        if scaling.mode != "builtin":
            raise ValueError(
                "scaling.mode must be builtin, the only scaler that is simulated, got "
                f"{scaling.mode}; leave it out"
            )
        largest = max([scaling.min_replicas, *(each.min_replicas for each in scaling.schedules)])
        if largest > scaling.max_replicas:
            raise ValueError(
                "scaling.minReplicas, schedules' included, must be <= scaling.maxReplicas "
                f"({scaling.max_replicas}), got {largest}; lower the one or raise the other"
            )

    @property
    def first_replicas(self) -> int:
        return self.scaling.min_replicas if self.replicas is None else self.replicas


def _at_least(name: str, value: float, other: str, limit: float) -> None:
    if value < limit:
        raise ValueError(
            f"{name} must be >= {other} ({limit:g}), got {value:g}; change one of them"
        )
