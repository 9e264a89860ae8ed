"""The document of `kubectl quire status -o json`: everything that the screen shows, and no more.

`screen.py` draws it, `schema.py` writes its JSON schema to operator/docs. Stable: within a version
fields are added, and none goes or changes its meaning. Every key is always there; null is what is
not known or not there. Times are RFC 3339, sizes bytes, durations seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class _Part(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Base of all parts: camelCase on the wire, every key written."""


class Condition(_Part, frozen=True):
    """A condition of the service's status."""

    type: str
    status: str
    reason: str
    message: str
    since: Annotated[
        str | None, Meta(description="When `status` last changed; null: nobody wrote it yet.")
    ]


class Replicas(_Part, frozen=True):
    """How many pods."""

    wanted: Annotated[int | None, Meta(description="spec.replicas; null: the spec does not decode")]
    present: Annotated[int, Meta(description="Pods of all revisions that neither leave nor ended.")]
    ready: int


class Model(_Part, frozen=True):
    """What is served, and how much of it is here."""

    uri: str | None
    revision: Annotated[str | None, Meta(description="As the spec asks: branch, tag or commit.")]
    served_name: Annotated[str, Meta(description="The `model` that OpenAI clients send.")]
    commit: Annotated[str | None, Meta(description="What it was resolved to.")]
    bytes_total: int | None
    bytes_done: int | None
    bytes_per_second: Annotated[
        float | None, Meta(description="Of a fetch that runs, as it says itself.")
    ]
    eta_seconds: float | None


class Claim(_Part, frozen=True):
    """The PersistentVolumeClaim that the model lies on."""

    name: str
    phase: Annotated[
        str, Meta(description="Pending, Bound or Lost; Missing: there is none; Unknown: unseen.")
    ]
    requested: Annotated[str, Meta(description="Quantity that it asks for; empty: unknown.")]
    capacity: Annotated[str, Meta(description="Quantity that it got; empty: not bound.")]
    storage_class: Annotated[str, Meta(description="Empty: the default class.")]
    shared_by: Annotated[int, Meta(description="Services that own it together.")]


class Plan(_Part, frozen=True):
    """The engine's memory plan."""

    weight_bytes: int | None
    kv_bytes_per_token: int | None
    kv_blocks: int | None
    max_model_len: int | None
    max_concurrency: float | None
    required_bytes: Annotated[
        int | None, Meta(description="What one longest sequence needs in all.")
    ]
    memory_bytes: Annotated[
        int | None, Meta(description="Of a GPU, or the container's limit, that it was made for.")
    ]
    refusal: Annotated[str | None, Meta(description="Why it does not fit; null: nothing says so.")]


class Revision(_Part, frozen=True):
    """One Deployment of the service."""

    revision: str
    wanted: Annotated[bool, Meta(description="Whether the spec asks for it now.")]
    replicas: int
    ready: int
    image: str
    created: str
    failure: Annotated[str | None, Meta(description="Why its pods cannot be made.")]
    leaving: bool


class Load(_Part, frozen=True):
    """What a pod's own /metrics says now; null: its page does not say so."""

    running: Annotated[int | None, Meta(description="Requests in the engine's batch.")]
    waiting: Annotated[int | None, Meta(description="Requests that have not begun.")]
    kv_cache_utilization: Annotated[float | None, Meta(description="0 to 1")]


class Pod(_Part, frozen=True):
    """A pod that serves, fetches, or asks for the memory plan."""

    name: str
    revision: str | None
    node: str | None
    phase: Annotated[str, Meta(description="Kubernetes' own word.")]
    state: Annotated[
        str,
        Meta(
            description="One word: Ready, Loading, Fetching, Planning, Draining, Unschedulable, or "
            "what the kubelet says (CrashLoopBackOff, ImagePullBackOff, Evicted...)."
        ),
    ]
    ready: bool
    restarts: int
    created: str
    trouble: Annotated[
        str | None,
        Meta(
            description="What holds it up now, or how its container ended last, with the last line "
            "that it said."
        ),
    ]
    load: Load | None
    load_missing: Annotated[
        str | None, Meta(description="Why there is no load: completes the sentence `pod x ...`.")
    ]


class PlanJob(_Part, frozen=True):
    """The Job that asks the engine what the model needs, while there is one."""

    job: str
    attempt: int
    created: str
    state: Annotated[str, Meta(description="Running, Succeeded or Failed.")]
    pod: Pod | None


class FailedPlan(_Part, frozen=True):
    """The last attempt to have the plan made that failed, while there is no plan."""

    failures: Annotated[int, Meta(description="In a row.")]
    reason: str
    message: str
    time: Annotated[str | None, Meta(description="When it ended; null: not told yet.")]
    next: Annotated[str | None, Meta(description="When the next attempt begins; null: it runs.")]


class Fetch(_Part, frozen=True):
    """The Job that brings the model, while there is one."""

    job: str
    attempt: int
    created: str
    state: Annotated[str, Meta(description="Running, Succeeded or Failed.")]
    phase: Annotated[str | None, Meta(description="listing, downloading, verifying, done, failed")]
    note: Annotated[str | None, Meta(description="What it waits for, when for something.")]
    pod: Pod | None


class FailedFetch(_Part, frozen=True):
    """The last attempt that failed, while the model is not here."""

    failures: Annotated[int, Meta(description="In a row.")]
    reason: str
    message: str
    time: str
    next: Annotated[str, Meta(description="When the next attempt begins.")]


class Decision(_Part, frozen=True):
    """A change of replicas that the scaler made, or would have made (dryRun)."""

    time: str
    from_replicas: int
    to_replicas: int
    reason: str
    inputs: Annotated[dict[str, str], Meta(description="The measured values, by name.")]


class Scaling(_Part, frozen=True):
    """Who says how many pods, and what was decided last."""

    mode: str
    min_replicas: int
    max_replicas: int
    dry_run: bool
    idle_seconds_to_zero: int | None
    desired: int | None
    decisions: Annotated[list[Decision], Meta(description="At most five, newest first.")]


class Event(_Part, frozen=True):
    """An Event of the service, or a Warning of what it owns."""

    time: str
    type: str
    reason: str
    message: str
    count: int
    object: Annotated[str, Meta(description="kind/name")]


class Unseen(_Part, frozen=True):
    """A part that could not be read; what stands in it is empty or null for that reason."""

    part: str
    why: str


class Document(_Part, frozen=True):
    """One service as it was found."""

    version: Annotated[Literal[1], Meta(description="Of this document's form.")]
    time: Annotated[str, Meta(description="When it was read.")]
    namespace: str
    name: str
    created: str
    leaving: Annotated[bool, Meta(description="Whether it is being deleted.")]
    generation: int
    observed_generation: Annotated[
        int | None,
        Meta(description="Smaller than `generation`: the status is of an earlier spec."),
    ]
    spec_error: Annotated[str | None, Meta(description="Why the spec does not decode.")]
    ready: Condition
    remedy: Annotated[
        str | None,
        Meta(description="What to do about Ready's reason; null: nothing, or not known"),
    ]
    conditions: Annotated[list[Condition], Meta(description="All of them, Ready first.")]
    url: str | None
    replicas: Replicas
    model: Model
    claim: Annotated[Claim | None, Meta(description="null: the model lies on none of ours")]
    plan: Plan | None
    plan_job: PlanJob | None
    failed_plan: FailedPlan | None
    fetch: Fetch | None
    failed_fetch: FailedFetch | None
    revisions: Annotated[list[Revision], Meta(description="The wanted one first.")]
    pods: list[Pod]
    scaling: Scaling | None
    events: Annotated[list[Event], Meta(description="At most eight, newest first.")]
    unseen: Annotated[list[Unseen], Meta(description="What could not be read, and why.")]
