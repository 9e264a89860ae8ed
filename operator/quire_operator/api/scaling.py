"""`spec.scaling`: who writes `spec.replicas`, and by which targets."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from quire_operator.api.parts import Part, Rule


class Targets(Part, frozen=True):
    """What one replica may carry. The target that is exceeded most decides."""

    queue_depth: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Waiting requests per replica. Default 4."),
    ] = 4
    ttft_seconds: Annotated[
        Annotated[float, Meta(ge=0.001, le=3600)] | None,
        Meta(
            description="95th percentile of the time to the first token, in seconds. Unset: "
            "not looked at.",
        ),
    ] = None
    kv_cache_utilization: Annotated[
        Annotated[float, Meta(ge=0.05, le=1.0)] | None,
        Meta(description="Used part of the KV cache, 0.05 to 1. Default 0.9."),
    ] = 0.9


class ScaleRule(Part, frozen=True):
    """How fast one direction is followed."""

    stabilization_seconds: Annotated[
        Annotated[int, Meta(ge=0, le=3600)] | None,
        Meta(
            description="Seconds for which the wish must have lasted. Default 0 up, 300 down. "
            "Starts anew with the operator.",
        ),
    ] = None
    max_step: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        Meta(
            description="Most replicas added or removed at once. Default: up as many as are "
            "ready (at most doubling, whatever is given here), down 1.",
        ),
    ] = None


class Schedule(Part, frozen=True):
    """From each of its moments on, another minReplicas."""

    cron: Annotated[
        str,
        Meta(
            min_length=9,
            max_length=100,
            pattern=r"^\S+( \S+){4}$",
            description="Five cron fields: minute, hour, day of month, month, day of week. "
            "minReplicas holds from each such moment until the next one of any schedule.",
        ),
    ]
    min_replicas: Annotated[
        int, Meta(ge=1, le=1000, description="Fewest replicas from then on. At most maxReplicas.")
    ]
    time_zone: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9_+/-]+$",
            description="IANA name, such as Europe/Berlin. Default UTC.",
        ),
    ] = "UTC"


class Keda(Part, frozen=True):
    """Where KEDA reads with mode keda."""

    prometheus_server: Annotated[
        Annotated[str, Meta(min_length=1, max_length=2048, pattern=r"^https?://\S+$")] | None,
        Meta(
            description="Address of a Prometheus that scrapes the pods. Unset: KEDA asks the "
            "operator, which scrapes them itself.",
        ),
    ] = None


class Scaling(Part, frozen=True):
    """Who writes spec.replicas."""

    rules = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "scaling.minReplicas must be <= scaling.maxReplicas",
        ),
        Rule(
            "!has(self.schedules) || self.schedules.all(s, s.minReplicas <= self.maxReplicas)",
            "scaling.schedules[].minReplicas must be <= scaling.maxReplicas",
        ),
        Rule(
            "!has(self.idleSecondsToZero) || self.mode in ['builtin', 'keda']",
            "scaling.idleSecondsToZero needs scaling.mode builtin or keda (an HPA at 0 stops"
            " itself, and with mode none nobody would come back from 0)",
        ),
        Rule(
            "!has(self.dryRun) || !self.dryRun || self.mode == 'builtin'",
            "scaling.dryRun needs scaling.mode builtin (the other modes decide elsewhere)",
        ),
    )

    mode: Annotated[
        Literal["none", "builtin", "hpa", "keda"],
        Meta(
            description="`none` (default): the user, or anything else that writes /scale. "
            "`builtin`: the operator's scaler, which reads the pods' own metrics; "
            "it never shrinks on missing ones. `hpa`: a HorizontalPodAutoscaler of ours, on the "
            "operator's external metrics. `keda`: a ScaledObject of ours.",
        ),
    ] = "none"
    min_replicas: Annotated[
        int, Meta(ge=1, le=1000, description="Fewest replicas while not idle. Default 1.")
    ] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=1000, description="Most replicas. Default 4.")] = 4
    targets: Annotated[
        Targets, Meta(description="What one replica may carry before another is added.")
    ] = Targets()
    scale_up: Annotated[ScaleRule, Meta(description="How replicas are added.")] = ScaleRule()
    scale_down: Annotated[ScaleRule, Meta(description="How replicas are removed.")] = ScaleRule()
    idle_seconds_to_zero: Annotated[
        Annotated[int, Meta(ge=10, le=604_800)] | None,
        Meta(
            description="Seconds without any request after which no pod is kept (modes builtin "
            "and keda). The gateway holds what comes then and wakes the service. "
            "Unset: never below minReplicas.",
        ),
    ] = None
    schedules: Annotated[
        list[Schedule],
        Meta(max_length=16, description="Moments from which another minReplicas holds."),
    ] = field(default_factory=list)
    keda: Annotated[Keda, Meta(description="Where KEDA reads with mode keda.")] = Keda()
    dry_run: Annotated[
        bool,
        Meta(
            description="Record decisions in status.scaling without following them. Default false."
        ),
    ] = False

    @property
    def up_seconds(self) -> int:
        return self.scale_up.stabilization_seconds or 0

    @property
    def down_seconds(self) -> int:
        seconds = self.scale_down.stabilization_seconds
        return 300 if seconds is None else seconds
