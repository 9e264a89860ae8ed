"""Projections: the little that we keep of each object that passes by (a whole pod is 30 KiB).

`projections.project` makes them. Services, budgets and autoscalers keep `body` too: their JSON
without status and managedFields, as bytes, so that a drift can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quire_operator import api


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What every object has."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created: float
    """Epoch seconds."""
    deleting: bool
    owners: tuple[str, ...]
    """uids"""
    service: str | None
    """Label: the service that it serves."""
    annotations: Mapping[str, str]
    """Ours only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """An InferenceService. `spec` is None where it does not decode; `error` says why."""

    meta: Meta
    generation: int
    spec: api.Spec | None
    error: str | None
    status: api.Status
    replicas_writer: str | None = None
    """The field manager that wrote spec.replicas last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildView:
    """A Service, a PodDisruptionBudget, or our EndpointSlice that leads to the gateway."""

    meta: Meta
    body: bytes


@dataclass(frozen=True, slots=True)
class ConditionView:
    """A condition that another controller tells."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerView(ChildView):
    """A HorizontalPodAutoscaler, ours or KEDA's, or a ScaledObject."""

    kind: str
    conditions: tuple[ConditionView, ...]
    desired: int | None
    """Replicas that an HPA wants."""
    deleted: float | None
    """Epoch seconds: when its deletion was asked for, while a finalizer holds it."""

    def condition(self, type_: str) -> ConditionView | None:
        return next((found for found in self.conditions if found.type == type_), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """A PersistentVolumeClaim."""

    meta: Meta
    managed: bool
    """Whether it carries our label."""
    phase: str
    size: str
    """Asked for."""
    capacity: str = ""
    """Given; empty while it is not bound."""
    storage_class: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentView:
    """A Deployment of one revision."""

    meta: Meta
    revision: str
    replicas: int
    ready: int
    image: str
    failure: str | None
    """Why pods could not be made (condition ReplicaFailure)."""
    unavailable_since: float | None = None
    """Epoch seconds: since when it has had fewer available pods than it is asked for."""

    @property
    def waits_since(self) -> float:
        """From when on the progress deadline counts: one that was woken has just begun."""
        return max(self.meta.created, self.unavailable_since or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One numbered fetch, or one numbered plan."""

    meta: Meta
    claim: str
    """The stem of a fetch's name; empty for a plan."""
    attempt: int
    asked: str
    """Who started it, and how it was to go."""
    succeeded: bool
    failed: bool
    finished: float | None
    """Epoch seconds."""
    failure: str | None
    plan: str | None = None
    """What a plan was asked for (`memory_plan.Request.key`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended."""

    code: int
    reason: str
    message: str
    finished: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container's state: waiting, running or exited now, and how it ended before."""

    name: str
    waiting: str | None
    waiting_message: str
    running: bool
    exited: Exit | None
    last_exit: Exit | None
    restarts: int
    memory_limit: str | None
    started: bool = False
    """Its start-up probe has passed since it last began."""

    @property
    def last_end(self) -> Exit | None:
        """How it ended, now or before it began anew."""
        return self.exited or self.last_exit

    @property
    def is_being_made(self) -> bool:
        """Neither running nor ended, and the kubelet has nothing against it yet."""
        waits = self.waiting in (None, "ContainerCreating", "PodInitializing")
        return waits and not self.running and self.last_end is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod that serves, fetches or plans."""

    meta: Meta
    revision: str | None
    job: str | None
    claim: str | None
    """Of a pod that fetches: the stem of its Job's name."""
    ip: str | None
    phase: str
    phase_reason: str
    phase_message: str
    unschedulable: str | None
    """The scheduler's words, while it finds no node."""
    node: str | None
    """The node that was found for it."""
    ready: bool
    ready_since: float | None
    started: float | None
    init: ContainerView | None
    main: ContainerView | None
    others: tuple[ContainerView, ...] = ()
    """What podTemplate adds: init containers first."""
    ended_at: float | None = None
    """Epoch seconds: of a pod that is but a record, as far as it is told."""

    @property
    def on_node(self) -> bool:
        return self.node is not None

    @property
    def ended(self) -> bool:
        """Evicted, say: it stays as a record of itself, and another has taken its place."""
        return self.phase in ("Failed", "Succeeded")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsView:
    """An EndpointSlice of our Service's selector, made by the cluster."""

    meta: Meta
    address: str
    """The Service that it is of."""
    ready: bool
    """Whether it has an endpoint that takes requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A Lease: of who holds requests for a service, or of the one fetch that writes a claim."""

    meta: Meta
    holder: str
    renewed: float | None
    """Epoch seconds, by the holder's clock."""
    duration_seconds: float
    acquired: float | None = None
    """Epoch seconds, by the holder's clock."""
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Gateway:
    """The pods of the gateway's that are ready, as the EndpointSlices of its Service tell."""

    addresses: tuple[str, ...] = ()
    """Sorted, of one family."""
    family: str = "IPv4"
    """addressType of an EndpointSlice."""


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A node that tells by a label how much memory each of its GPUs has."""

    name: str
    labels: Mapping[str, str]
    mebibytes: int


View = (
    ServiceView
    | ChildView
    | ClaimView
    | DeploymentView
    | JobView
    | PodView
    | EndpointsView
    | LeaseView
)
