"""`status`: what the operator sees."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from quire_operator.api.parts import Part


class Condition(Part, frozen=True, omit_defaults=False):
    """One observation, in the form that `kubectl wait` understands."""

    type: Annotated[
        str,
        Meta(
            max_length=64,
            description="Ready, ModelCached, Fits, PodsReady, RolloutComplete or Scaling.",
        ),
    ]
    status: Annotated[
        Literal["True", "False", "Unknown"], Meta(description="True, False or Unknown.")
    ]
    reason: Annotated[str, Meta(max_length=128, description="One word that says why.")]
    message: Annotated[
        str, Meta(max_length=4096, description="The same for a person, with numbers.")
    ]
    observed_generation: Annotated[
        int, Meta(description="The metadata.generation that this was said of.")
    ]
    last_transition_time: Annotated[
        str,
        Meta(
            description="When status last changed, RFC 3339.",
            extra_json_schema={"format": "date-time"},
        ),
    ]


class ModelStatus(Part, frozen=True):
    """What is known of the model's files."""

    commit: Annotated[
        str | None, Meta(description="Commit that model.revision was resolved to.")
    ] = None
    bytes_total: Annotated[int | None, Meta(description="Bytes to fetch.")] = None
    bytes_done: Annotated[
        int | None, Meta(description="Bytes fetched; renewed at most every 5 s.")
    ] = None
    eta_seconds: Annotated[float | None, Meta(description="Seconds to go at the present rate.")] = (
        None
    )


class PlanStatus(Part, frozen=True):
    """The engine's memory plan of one replica, made from the model's headers before it is fetched.

    With tensorParallel bytes are of one GPU."""

    key: Annotated[
        str | None,
        Meta(
            description="What it was asked for: a hash of model, flags and given memory, and the "
            "bytes of memory that it was made for. It is asked anew when this changes."
        ),
    ] = None
    commit: Annotated[
        str | None, Meta(description="Commit whose files it is of, and which is then fetched.")
    ] = None
    bytes_total: Annotated[int | None, Meta(description="Bytes of the files to fetch.")] = None
    weight_bytes: Annotated[int | None, Meta(description="Bytes of the weights.")] = None
    kv_bytes_per_token: Annotated[
        int | None, Meta(description="Bytes of KV cache that one token takes.")
    ] = None
    kv_blocks: Annotated[
        int | None, Meta(description="Blocks of KV cache that the memory has room for.")
    ] = None
    max_model_len: Annotated[int | None, Meta(description="The longest sequence, in tokens.")] = (
        None
    )
    max_concurrency: Annotated[
        float | None, Meta(description="Sequences of that length that the cache holds at once.")
    ] = None
    required_bytes: Annotated[
        int | None, Meta(description="Bytes that one sequence of that length needs in all.")
    ] = None
    memory_bytes: Annotated[
        int | None,
        Meta(description="Bytes of a GPU, or of the container's limit, that it was made for."),
    ] = None
    refusal: Annotated[
        str | None, Meta(description="Why it does not fit, and what would. Unset: it fits.")
    ] = None


class StartupStatus(Part, frozen=True):
    """How long pods take to start."""

    last_seconds: Annotated[
        float | None,
        Meta(description="Seconds from the last ready pod's start to its readiness."),
    ] = None


class ScalingDecision(Part, frozen=True, omit_defaults=False):
    """One decision of the scaler, with what it was based on."""

    time: Annotated[
        str,
        Meta(description="When, RFC 3339.", extra_json_schema={"format": "date-time"}),
    ]
    from_replicas: Annotated[int, Meta(description="Replicas before.")] = field(name="from")
    to_replicas: Annotated[int, Meta(description="Replicas decided.")] = field(name="to")
    reason: Annotated[str, Meta(max_length=1024, description="Why, in words and numbers.")]
    inputs: Annotated[
        dict[str, str],
        Meta(description="The measured values that were decided on, by name."),
    ] = field(default_factory=dict)


class ScalingStatus(Part, frozen=True):
    """What the scaler wants and did."""

    desired: Annotated[int | None, Meta(description="Replicas that the scaler wants now.")] = None
    decisions: Annotated[
        list[ScalingDecision],
        Meta(max_length=5, description="The last five changes, newest first."),
    ] = field(default_factory=list)


class Status(Part, frozen=True):
    """What the operator sees."""

    observed_generation: Annotated[
        int | None, Meta(description="The metadata.generation that this status describes.")
    ] = None
    conditions: Annotated[
        list[Condition],
        Meta(
            max_length=16,
            description="Ready and what it is made of.",
            extra_json_schema={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = field(default_factory=list)
    url: Annotated[
        str | None, Meta(description="Base URL for OpenAI clients inside the cluster.")
    ] = None
    replicas: Annotated[
        int | None, Meta(description="Pods of this service, ready or not (for /scale).")
    ] = None
    ready_replicas: Annotated[int | None, Meta(description="Pods that are ready.")] = None
    selector: Annotated[
        str | None, Meta(description="Label selector of the pods (for /scale).")
    ] = None
    revision: Annotated[str | None, Meta(description="Revision that the spec asks for.")] = None
    model: Annotated[
        ModelStatus | None, Meta(description="What is known of the model's files.")
    ] = None
    plan: Annotated[PlanStatus | None, Meta(description="The engine's memory plan.")] = None
    startup: Annotated[StartupStatus | None, Meta(description="How long pods take to start.")] = (
        None
    )
    scaling: Annotated[ScalingStatus | None, Meta(description="What the scaler wants and did.")] = (
        None
    )
    gateway_port: Annotated[
        int | None,
        Meta(
            description="The gateway's port for this service alone, 20000 to 29999: where its own "
            "address leads while it has no ready pod. Given to services with "
            "scaling.idleSecondsToZero, and kept.",
        ),
    ] = None


def decode_status(status: object) -> Status:
    """A status as stored; one that does not decode counts as empty, as we write it anew."""
    try:
        return msgspec.convert(status, Status)
    except msgspec.ValidationError:
        return Status()
