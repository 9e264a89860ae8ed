"""All that one reconcile of one service looks at, taken from the world at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from quire_operator import api, memory_plan, names, schedules
from quire_operator.autoscalers import Limits, keda_hpa, others, wanted_kind
from quire_operator.fetch_environment import Network
from quire_operator.kinds import BUDGET, SERVICE, SLICE, Kind
from quire_operator.names import Key
from quire_operator.plan_places import ALONE, PLACES, Line
from quire_operator.pods import Mount, content_of, mount_of, revision_of, spec_digest
from quire_operator.schedules import Minimum
from quire_operator.values import quantity
from quire_operator.views import (
    AutoscalerView,
    ChildView,
    ClaimView,
    DeploymentView,
    Gateway,
    GpuNode,
    JobView,
    PodView,
    ServiceView,
)
from quire_operator.world import ScalingRecord, World
from quire_operator.writer import Writer

MAX_UNCLEAR = 3
"""Pods of one service that are asked about in one pass: the others suffer from the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a fetch says of itself at /progress."""

    phase: str
    bytes_total: int | None
    bytes_done: int
    bytes_per_second: float
    eta_seconds: float | None
    commit: str | None
    note: str = ""
    """What the fetch waits for: a source that answers badly, another fetch on the volume."""
    reason: str = ""
    """As it would end, of trouble that has lasted for seconds while it is tried again."""

    @property
    def moves(self) -> bool:
        """It knows how much there is to fetch, and how fast it comes."""
        return bool(self.bytes_total) and self.bytes_per_second > 0 and not self.reason


@dataclass(frozen=True, slots=True)
class PodEvent:
    """What the kubelet, the scheduler or a controller told of a pod."""

    reason: str
    message: str
    is_warning: bool
    at: float
    """Epoch seconds: when it was told last."""


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What an engine said at /ready."""

    reason: str
    """Its own (Ready, Loading, Draining, Stalled, CoreDied), or NoAnswer, Refused, Strange."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The operator's settings that go into pods and plans."""

    image: str
    network: Network
    keda_scaler: str | None = None
    """host:port at which KEDA finds our external scaler; None where it is not served."""
    external_metrics: bool = False
    """Whether we serve external.metrics.k8s.io."""
    plan_places: int = PLACES
    """Plan Jobs at a time, in all the cluster."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One service and everything around it. `spec` has been decoded: a service without one is told
    so in its status and not planned for.

    Without slots, as what is derived, and asked for by every rule, is worked out once: the revision
    is a hash of the whole spec.
    """

    now: float
    """Epoch seconds."""
    key: Key
    service: ServiceView
    spec: api.Spec
    defaults: Defaults
    deployments: tuple[DeploymentView, ...]
    """Ours, deleting ones included."""
    pods: tuple[PodView, ...]
    address: ChildView | None
    budget: ChildView | None
    claim: ClaimView | None
    """The claim that the spec's model lies on."""
    released: tuple[ClaimView, ...]
    """Claims that the service still owns and its spec no longer uses."""
    jobs: tuple[JobView, ...]
    """Fetches to `claim`, by attempt."""
    fetch_pods: tuple[PodView, ...]
    stale_jobs: tuple[JobView, ...]
    """Our fetches of what the spec no longer wants."""
    wanted_elsewhere: bool = False
    """Whether another service wants the same content on `claim`."""
    plan_jobs: tuple[JobView, ...] = ()
    """Ours that ask for a memory plan, by attempt; earlier specs' too."""
    plan_pods: tuple[PodView, ...] = ()
    plan_line: Line = ALONE
    """Other services' plans that come first."""
    gpu_nodes: tuple[GpuNode, ...] = ()
    """Looked at while a plan wants to know their memory (`fit.asks_nodes`)."""
    progress: Progress | None = None
    claim_event: str | None = None
    """The last event's words on a claim that is not bound."""
    job_event: str | None = None
    """The last event's words on a fetch Job that has no pod."""
    plan_event: str | None = None
    """The last event's words on a plan Job that has no pod."""
    pod_events: Mapping[str, tuple[PodEvent, ...]] = field(default_factory=dict)
    """By uid, of `unclear_pods`: the newest first."""
    answers: Mapping[str, EngineAnswer] = field(default_factory=dict)
    """By uid, of `unclear_pods` whose engine runs."""
    writer: Writer | None = None
    """Whose turn it is to write `claim`; None while it is nobody's."""
    scaling: ScalingRecord | None = None
    startup_seconds: float | None = None
    gateway: Gateway | None = None
    """None where no gateway is configured."""
    route: ChildView | None = None
    """Our EndpointSlice, by which the service's address leads to the gateway."""
    is_answered: bool = False
    """Whether the service's address leads to a ready pod of its own."""
    autoscalers: tuple[AutoscalerView, ...] = ()
    """HPAs and ScaledObjects of the service's, KEDA's own HPA among them, leaving ones included."""
    keda_trouble: str | None = None
    """Why no ScaledObject can be made; None where KEDA's definitions are installed."""
    held_port: int | None = None
    """The gateway's port that is the service's, as long as it wants one."""

    @property
    def gateway_port(self) -> int | None:
        """Wanted by who may sleep; and nobody else gets it while our slice still leads there."""
        wants = self.spec.scaling.idle_seconds_to_zero is not None or self.route is not None
        return self.held_port if wants else None

    @property
    def uid(self) -> str:
        return self.service.meta.uid

    @cached_property
    def mount(self) -> Mount:
        return mount_of(self.spec)

    @property
    def content(self) -> str:
        return content_of(self.spec)

    @property
    def stem(self) -> str:
        """What the content's fetches are called after."""
        return names.fetch_stem(self.mount.claim or "", self.content)

    @property
    def fetches(self) -> bool:
        """Whether the model comes to a claim by a Job (not: pvc:// and emptyDir)."""
        return not self.spec.model.uri.startswith("pvc://") and self.mount.claim is not None

    @property
    def is_cached(self) -> bool:
        """Whether the model's files are whole on its claim."""
        records = self.claim.meta.annotations if self.claim is not None else {}
        return names.fetched_annotation(self.content) in records

    @property
    def planned(self) -> api.PlanStatus | None:
        """The memory plan in status, if it is of what the spec asks for; for whatever memory."""
        return memory_plan.stored(self.service.status, self.spec)

    @property
    def model_before(self) -> api.ModelStatus | None:
        """What status says of the model's files, if it is of the model that the spec names: written
        for this very spec, or of the commit that was planned for it."""
        status, planned = self.service.status, self.planned
        if status.model in (None, api.ModelStatus()):  # an apply may leave an empty one behind
            return None
        if status.observed_generation == self.service.generation:
            return status.model
        commit = planned.commit if planned is not None else None
        same = status.model is not None and commit is not None and status.model.commit == commit
        return status.model if same else None

    @property
    def claim_size(self) -> str | None:
        """What the claim is to have; None for as it is: nobody says, or the files are there."""
        if self.spec.cache.size is not None:
            return str(self.spec.cache.size)
        total = self.planned.bytes_total if self.planned is not None else None
        return None if total is None or self.is_cached else memory_plan.claim_size(total)

    @property
    def too_small(self) -> bool:
        """Whether the claim is ours and less than it is to have."""
        if self.spec.cache.mode != "shared" or not self.fetches or self.claim is None:
            return False
        return (quantity(self.claim_size) or 0) > (quantity(self.claim.size) or 0)

    @property
    def refused_growth(self) -> str | None:
        """The API server's words, where the claim cannot grow to what it is to have."""
        if not self.too_small or self.claim is None:
            return None
        refused = names.refused_size_annotation(str(self.claim_size))
        return self.claim.meta.annotations.get(refused)

    @property
    def other_writers(self) -> tuple[AutoscalerView, ...]:
        """Autoscalers that the mode does not want and that are still there."""
        return tuple(others(self.key, self.spec, self.autoscalers))

    @property
    def autoscaler(self) -> AutoscalerView | None:
        """Our own of the kind that the mode wants."""
        kind = wanted_kind(self.spec)
        for view in self.autoscalers:
            ours = view.meta.name == self.key.name and self.uid in view.meta.owners
            if kind is not None and view.kind == kind.kind and ours:
                return view
        return None

    @property
    def keda_hpa(self) -> AutoscalerView | None:
        name = keda_hpa(self.key.name)
        return next((view for view in self.autoscalers if view.meta.name == name), None)

    @property
    def minimum(self) -> Minimum:
        """minReplicas as it is now, schedules included."""
        now = datetime.fromtimestamp(self.now, UTC)
        scaling = self.spec.scaling
        return schedules.minimum(scaling.schedules, scaling.min_replicas, now)

    @property
    def limits(self) -> Limits:
        minimum = self.minimum
        sleeps = self.spec.scaling.idle_seconds_to_zero is not None
        return Limits(
            min_replicas=minimum.replicas,
            may_shrink=not minimum.errors,
            paused=self.spec.replicas == 0 and not sleeps,
        )

    @cached_property
    def current(self) -> DeploymentView | None:
        """The Deployment that holds what the spec asks for, whatever image was pinned to it."""
        digest = spec_digest(self.spec)
        for view in self.deployments:
            same = view.meta.annotations.get(names.ANNOTATION_SPEC) == digest
            if same and not view.meta.deleting and self._image_stands(view):
                return view
        return None

    def _image_stands(self, view: DeploymentView) -> bool:
        return self.spec.engine.image is None or view.image == self.image

    @property
    def others(self) -> tuple[DeploymentView, ...]:
        """Deployments of other revisions that are not yet on their way out."""
        current = self.current
        kept = (v for v in self.deployments if current is None or v.meta.uid != current.meta.uid)
        return tuple(v for v in kept if not v.meta.deleting)

    @property
    def image(self) -> str:
        """Of a new revision, and of fetches."""
        return self.spec.engine.image or self.defaults.image

    @cached_property
    def revision(self) -> str:
        if self.current is not None:
            return self.current.revision
        return revision_of(spec_digest(self.spec), self.image)

    @cached_property
    def current_pods(self) -> tuple[PodView, ...]:
        """Pods of the wanted revision that are not leaving, and have not ended."""
        return tuple(p for p in self._of_revision() if not p.ended)

    @property
    def ended_pods(self) -> tuple[PodView, ...]:
        """Pods of the wanted revision that are but records (evicted ones), oldest first."""
        ended = (p for p in self._of_revision() if p.ended)
        return tuple(sorted(ended, key=lambda pod: pod.meta.created))

    @property
    def unclear_pods(self) -> tuple[PodView, ...]:
        """Pods that have a node and are not ready, the oldest first: no watch tells why."""
        last = {jobs[-1].meta.name for jobs in (self.jobs, self.plan_jobs) if jobs}
        of_jobs = [p for p in (*self.fetch_pods, *self.plan_pods) if p.job in last and not p.ended]
        waiting = [pod for pod in (*of_jobs, *self.current_pods) if pod.on_node and not pod.ready]
        return tuple(sorted(waiting, key=lambda pod: pod.meta.created)[:MAX_UNCLEAR])

    def _of_revision(self) -> list[PodView]:
        revision = self.revision
        return [p for p in self.pods if p.revision == revision and not p.meta.deleting]


def observe(
    world: World, key: Key, service: ServiceView, spec: api.Spec, defaults: Defaults, now: float
) -> Observation:
    """The world around one service."""
    uid = service.meta.uid
    mount = mount_of(spec)
    claim = world.claim(Key(key.namespace, mount.claim)) if mount.claim else None
    stem = names.fetch_stem(mount.claim or "", content_of(spec))
    owned = world.claims_owned(key.namespace, uid)
    jobs = world.jobs(Key(key.namespace, stem)) if mount.claim else []
    ours = [job for job in world.jobs(key) if uid in job.meta.owners]
    return Observation(
        now=now,
        key=key,
        service=service,
        spec=spec,
        defaults=defaults,
        deployments=tuple(d for d in world.deployments(key) if uid in d.meta.owners),
        pods=tuple(world.pods(key)),
        address=_owned_child(world, SERVICE, key, uid),
        budget=_owned_child(world, BUDGET, key, uid),
        claim=claim,
        released=tuple(c for c in owned if c.meta.name != mount.claim),
        jobs=tuple(sorted(jobs, key=lambda job: job.attempt)),
        fetch_pods=tuple(world.job_pods(Key(key.namespace, stem))) if mount.claim else (),
        stale_jobs=tuple(job for job in ours if job.plan is None and job.claim != stem),
        wanted_elsewhere=any(
            _wants(world, other)
            for other in world.services_of(Key(key.namespace, stem))
            if other.meta.uid != uid
        ),
        plan_jobs=tuple(sorted(_plans(ours), key=lambda job: job.attempt)),
        plan_pods=tuple(world.plan_pods(key)),
        plan_line=world.places.line(key, service),
        writer=world.writer(Key(key.namespace, mount.claim)) if mount.claim else None,
        scaling=world.scaling(key),
        startup_seconds=world.startup_seconds(key),
        gateway=world.gateway,
        autoscalers=tuple(world.autoscalers(key)),
        keda_trouble=world.keda_trouble,
        route=_owned_child(world, SLICE, Key(key.namespace, names.gateway_slice(key.name)), uid),
        is_answered=world.is_answered(key),
        held_port=world.ports.port(key),
    )


def _wants(world: World, service: ServiceView) -> bool:
    """Whether a service goes on with the fetch of its model: it is not paused, and not refused."""
    spec = service.spec
    if spec is None or service.meta.deleting or not (spec.replicas > 0 or spec.cache.prefetch):
        return False
    plan = memory_plan.stored(service.status, spec)
    serves = bool(world.deployments(Key(service.meta.namespace, service.meta.name)))
    return serves or plan is None or plan.refusal is None


def _plans(jobs: list[JobView]) -> list[JobView]:
    return [job for job in jobs if job.plan is not None]


def _owned_child(world: World, kind: Kind, key: Key, uid: str) -> ChildView | None:
    view = world.get(kind, key)
    return view if isinstance(view, ChildView) and uid in view.meta.owners else None
