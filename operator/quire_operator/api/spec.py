"""`spec`: what the user asks for."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from quire_operator.api.engine import Engine, Resources
from quire_operator.api.model import Cache, Model
from quire_operator.api.parts import Part, Rule
from quire_operator.api.scaling import Scaling


class Rollout(Part, frozen=True):
    """How a revision follows another, and how a pod leaves."""

    drain_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds that a leaving pod has to finish its requests. Default 120. "
            "The pod's grace period is this plus 20: 10 for endpoints to "
            "propagate, 10 to exit.",
        ),
    ] = 120
    progress_deadline_seconds: Annotated[
        int,
        Meta(
            ge=10,
            le=604_800,
            description="Seconds, counted from when its Deployment became unavailable (or "
            "was made, if that is later), within which a revision must become ready. "
            "Default 1800. Past them RolloutComplete is False with reason "
            "ProgressDeadlineExceeded; an earlier revision keeps serving.",
        ),
    ] = 1800


class Spec(Part, frozen=True):
    """What the user asks for."""

    rules = (
        Rule(
            "!has(self.engine.tensorParallel) || self.engine.tensorParallel == 1"
            " || self.engine.tensorParallel <= self.resources.gpus",
            "engine.tensorParallel must be <= resources.gpus (the GPUs of one replica)",
        ),
        Rule(
            "!has(self.engine.quantization) || self.resources.gpus == 0",
            "engine.quantization runs on the CPU only: set resources.gpus 0, or remove"
            " engine.quantization",
        ),
        Rule(
            "self.cache.mode != 'none' || !has(self.model.credentialsSecret)",
            "model.credentialsSecret reaches the fetch Job only, and cache.mode none has none: set"
            " cache.mode shared or existing, or remove model.credentialsSecret",
        ),
    )

    model: Model
    replicas: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Number of pods. Default 1. Written by the user, or by the scaler "
            "through /scale; 0 stops all pods and keeps the cache.",
        ),
    ] = 1
    engine: Annotated[Engine, Meta(description="Flags of the engine.")] = Engine()
    resources: Annotated[Resources, Meta(description="What one replica takes.")] = Resources()
    cache: Annotated[Cache, Meta(description="Where the model's files are kept.")] = Cache()
    scaling: Annotated[Scaling, Meta(description="Who writes spec.replicas.")] = Scaling()
    rollout: Annotated[
        Rollout, Meta(description="How a revision follows another, and how a pod leaves.")
    ] = Rollout()
    pod_template: Annotated[
        dict[str, Any],
        Meta(
            description="Overlay on the pod (metadata and spec of a PodTemplateSpec), merged "
            "strategically: lists of containers, env, volumes and the like merge "
            "by their names, all else is replaced. The engine's container is "
            "`engine`. Our labels, the command and the ports stay. The fetch Job "
            "takes over nodeSelector, tolerations, affinity, schedulerName, "
            "priorityClassName, runtimeClassName and imagePullSecrets.",
        ),
    ] = field(default_factory=dict)


def decode_spec(spec: object) -> Spec:
    """A spec as stored. Raises msgspec.ValidationError with the path that is wrong."""
    return msgspec.convert(spec, Spec)
