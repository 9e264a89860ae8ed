"""The cache: what the watches have told so far, by kind and by service. No I/O; the clock comes in.

`main.py` feeds it, `reconcile.py` and the scaling loop read it, the work queue is woken by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from quire_operator import api, autoscalers, names
from quire_operator.activation import Sighting, sight
from quire_operator.kinds import (
    CLAIM,
    DEPLOYMENT,
    HPA,
    JOB,
    LEASE,
    POD,
    SCALED_OBJECT,
    SERVICE_KIND,
    SLICE,
    Kind,
)
from quire_operator.names import Key
from quire_operator.plan_places import Places
from quire_operator.pods import content_of, mount_of
from quire_operator.ports import Ports
from quire_operator.views import (
    AutoscalerView,
    ClaimView,
    DeploymentView,
    EndpointsView,
    Gateway,
    JobView,
    LeaseView,
    Meta,
    PodView,
    ServiceView,
    View,
)
from quire_operator.writer import Writer

_Of = TypeVar("_Of")

MAX_DECISIONS = 5
AUTOSCALERS = (HPA, SCALED_OBJECT)


@dataclass(frozen=True, slots=True)
class PodEndpoint:
    """A ready pod, as the scraper needs it."""

    name: str
    ip: str
    port: int
    revision: str
    ready_since: float
    """Epoch seconds."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One service, as the scaler sees it."""

    key: Key
    spec: api.Spec
    replicas: int
    """spec.replicas: what is asked for."""
    ready_pods: tuple[PodEndpoint, ...]
    pending: int
    """Pods without a node yet, and wanted ones that are not there yet."""
    unschedulable: int
    """Pods that no node takes."""
    deleting: bool
    uid: str = ""
    resource_version: str = ""
    starting: tuple[str, ...] = ()
    """Names of pods that have a node and are not ready, or not any more."""
    draining: int = 0
    """Pods on their way out; counted nowhere else. Ended pods are counted nowhere at all."""
    activated: bool = False
    """Somebody holds requests for this service: its activation Lease is fresh."""
    gateway_ready: bool = False
    """At zero replicas its Service would lead to a gateway that holds requests."""
    other_writer: str | None = None
    """An autoscaler that may write this service's replicas too, such as "HorizontalPodAutoscaler
    chat": while there is one, the operator's own scaler writes nothing."""


@dataclass(frozen=True, slots=True)
class ScalingReport:
    """What the scaler found for one service: becomes condition Scaling and status.scaling."""

    desired: int | None
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    decision: api.ScalingDecision | None = None


@dataclass(frozen=True, slots=True)
class ScalingRecord:
    """The last report and the decisions of this process, newest first."""

    report: ScalingReport
    decisions: tuple[api.ScalingDecision, ...]


class World:
    """Owner of all projections. `wake(key)` is called for each service that an event concerns,
    `on_activation(key)` for one that was just activated; `wall` gives epoch seconds."""

    def __init__(
        self,
        wake: Callable[[Key], None] = lambda key: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wake = wake
        self._wall = wall
        self.on_activation: Callable[[Key], None] = lambda key: None
        self.ports = Ports()
        self.places = Places()
        self._gateway: Gateway | None = None
        self._keda_trouble: str | None = None
        self._sightings: dict[Key, Sighting] = {}
        self._objects: dict[Kind, dict[Key, View]] = {}
        self._by_service: dict[tuple[Kind, Key], set[Key]] = {}
        self._claims: dict[Key, set[Key]] = {}
        self._owned_claims: dict[str, set[Key]] = {}
        self._by_uid: dict[str, Key] = {}
        self._scaling: dict[Key, ScalingRecord] = {}
        self._startup: dict[Key, float] = {}
        self._was_ready: set[str] = set()

    # ---- feeding ----

    def put(self, kind: Kind, view: View) -> None:
        """Stores a projection, unless an event out of order brings an older one, and wakes."""
        at = Key(view.meta.namespace, view.meta.name)
        before = self._objects.setdefault(kind, {}).get(at)
        if before is not None and not _news(view.meta, before.meta):
            return
        if before is not None and before.meta.uid != view.meta.uid:
            self.drop(kind, at)  # its end was not told; a successor inherits nothing
            before = None
        if before is not None:
            self._unlink(kind, at, before)
            self._notify(kind, at, before)
        self._objects[kind][at] = view
        self._note_startup(before, view)
        self._note_lease(at, view)
        self._link(kind, at, view)
        self._notify(kind, at, view)
        self._wake_next(before, view)

    def drop(self, kind: Kind, at: Key, uid: str | None = None) -> None:
        """Forgets an object that is gone; with `uid` only if it is still that one."""
        before = self._objects.get(kind, {}).get(at)
        if before is None or (uid is not None and before.meta.uid != uid):
            return
        del self._objects[kind][at]
        self._unlink(kind, at, before)
        self._was_ready.discard(before.meta.uid)
        if kind is SERVICE_KIND:
            self._scaling.pop(at, None)
            self._startup.pop(at, None)
            self.ports.forget(at)
        if kind is LEASE:
            self._sightings.pop(at, None)
        self._notify(kind, at, before)
        self._wake_next(before, None)

    def set_keda_trouble(self, trouble: str | None) -> None:
        """Takes why no ScaledObject can be made, None for that they can; wakes who wants one."""
        if trouble == self._keda_trouble:
            return
        self._keda_trouble = trouble
        for key in self.keys():
            service = self.service(key)
            if service is not None and service.spec and service.spec.scaling.mode == "keda":
                self._wake(key)

    def set_gateway(self, gateway: Gateway) -> None:
        """Takes which pods of the gateway's are ready; wakes those that may lead to them."""
        if gateway == self._gateway:
            return
        self._gateway = gateway
        for key in self.keys():
            service = self.service(key)
            if service is not None and service.status.gateway_port is not None:
                self._wake(key)

    def record_scaling(self, key: Key, report: ScalingReport) -> None:
        """Takes the scaler's report into the next status; wakes the service if it is news. One on a
        service that went meanwhile is dropped: nobody would forget it, and a successor get it."""
        if self.service(key) is None:
            return
        before = self._scaling.get(key)
        decisions = before.decisions if before else ()
        if report.decision is not None:
            decisions = (report.decision, *decisions)[:MAX_DECISIONS]
        record = ScalingRecord(replace(report, decision=None), decisions)
        if record != before:
            self._scaling[key] = record
            self._wake(key)

    # ---- reading ----

    def keys(self) -> list[Key]:
        """All services."""
        return list(self._objects.get(SERVICE_KIND, {}))

    def get(self, kind: Kind, at: Key) -> View | None:
        return self._objects.get(kind, {}).get(at)

    def all(self, kind: Kind) -> dict[Key, View]:
        """A copy of everything known of one kind."""
        return dict(self._objects.get(kind, {}))

    def service(self, key: Key) -> ServiceView | None:
        view = self.get(SERVICE_KIND, key)
        return view if isinstance(view, ServiceView) else None

    def claim(self, at: Key) -> ClaimView | None:
        view = self.get(CLAIM, at)
        return view if isinstance(view, ClaimView) else None

    def claims_owned(self, namespace: str, uid: str) -> list[ClaimView]:
        """Claims that hold an owner reference to this uid."""
        at = sorted(key for key in self._owned_claims.get(uid, ()) if key.namespace == namespace)
        return [view for key in at if (view := self.claim(key)) is not None]

    def services_of(self, stem: Key) -> list[ServiceView]:
        """Services whose model's fetches go by a stem of names: one content on one claim."""
        found = (self.service(key) for key in sorted(self._claims.get(stem, ())))
        return [service for service in found if service is not None]

    def deployments(self, key: Key) -> list[DeploymentView]:
        return [v for v in self._children(DEPLOYMENT, key) if isinstance(v, DeploymentView)]

    def pods(self, key: Key) -> list[PodView]:
        """The pods that serve."""
        views = [v for v in self._children(POD, key) if isinstance(v, PodView)]
        return [v for v in views if v.job is None]

    def plan_pods(self, key: Key) -> list[PodView]:
        """The pods of a service's plan Jobs; those of fetches bear no service's name."""
        views = [v for v in self._children(POD, key) if isinstance(v, PodView)]
        return [v for v in views if v.job is not None]

    def jobs(self, of: Key) -> list[JobView]:
        """The fetches and plans that a service started, or the fetches that go by a stem of
        names."""
        return [v for v in self._children(JOB, of) if isinstance(v, JobView)]

    def job_pods(self, stem: Key) -> list[PodView]:
        views = self._children(POD, stem)
        return [v for v in views if isinstance(v, PodView) and v.job is not None]

    def writer(self, claim: Key) -> Writer | None:
        """Whose turn it is to write a claim; None while it is nobody's."""
        at = Key(claim.namespace, names.writer_lease(claim.name))
        lease = self.get(LEASE, at)
        if not isinstance(lease, LeaseView):
            return None
        job = self.get(JOB, Key(claim.namespace, lease.holder))
        pods = self.job_pods(Key(claim.namespace, names.fetch_stem_of(lease.holder)))
        return Writer(
            lease=lease,
            seconds_left=self._sightings[at].seconds_left(self._wall()),
            job=job if isinstance(job, JobView) else None,
            pods=tuple(pod for pod in pods if pod.job == lease.holder),
        )

    def is_answered(self, key: Key) -> bool:
        """Whether its Service leads to a pod of its own: the cluster has told kube-proxy so."""
        slices = [v for v in self._children(SLICE, key) if isinstance(v, EndpointsView)]
        return any(view.ready for view in slices if view.address == key.name)

    @property
    def gateway(self) -> Gateway | None:
        """None where no gateway is configured."""
        return self._gateway

    def is_activated(self, key: Key) -> bool:
        """Whether somebody holds requests for it."""
        sighting = self._sightings.get(Key(key.namespace, names.activation(key.name)))
        return sighting is not None and sighting.is_fresh(self._wall())

    @property
    def keda_trouble(self) -> str | None:
        return self._keda_trouble

    def autoscalers(self, key: Key) -> list[AutoscalerView]:
        """HPAs and ScaledObjects of a service's, KEDA's own HPA among them."""
        views = (view for kind in AUTOSCALERS for view in self._children(kind, key))
        return [view for view in views if isinstance(view, AutoscalerView)]

    def scaling(self, key: Key) -> ScalingRecord | None:
        return self._scaling.get(key)

    def snapshot(self, key: Key) -> Snapshot | None:
        """None for a service that is gone or whose spec does not decode."""
        service = self.service(key)
        if service is None or service.spec is None:
            return None
        alive = [pod for pod in self.pods(key) if not pod.ended]
        present = [pod for pod in alive if not pod.meta.deleting]
        ready = tuple(_endpoint(pod) for pod in present if pod.ready and pod.ip)
        starting = tuple(
            pod.meta.name for pod in present if pod.on_node and not (pod.ready and pod.ip)
        )
        unschedulable = sum(pod.unschedulable is not None for pod in present)
        wanted = max(service.spec.replicas, len(present))
        return Snapshot(
            key=key,
            spec=service.spec,
            replicas=service.spec.replicas,
            ready_pods=ready,
            pending=max(0, wanted - len(ready) - len(starting) - unschedulable),
            unschedulable=unschedulable,
            deleting=service.meta.deleting,
            activated=self.is_activated(key),
            gateway_ready=self._holds_requests(service),
            uid=service.meta.uid,
            resource_version=service.meta.resource_version,
            starting=starting,
            draining=len(alive) - len(present),
            other_writer=self._other_writer(key, service.spec),
        )

    def _other_writer(self, key: Key, spec: api.Spec) -> str | None:
        others = autoscalers.others(key, spec, self.autoscalers(key))
        return f"{others[0].kind} {others[0].meta.name}" if others else None

    def startup_seconds(self, key: Key) -> float | None:
        """Seconds from start to readiness of the pod that last became ready under our eyes."""
        return self._startup.get(key)

    def _holds_requests(self, service: ServiceView) -> bool:
        """Whether the gateway could take a service's requests: it runs, and knows its port."""
        ready = self._gateway is not None and bool(self._gateway.addresses)
        return ready and service.status.gateway_port is not None

    def _wake_next(self, before: View | None, after: View | None) -> None:
        """Of those who wait to ask for a memory plan."""
        for key in self.places.next_after(before, after):
            self._wake(key)

    # ---- links ----

    def _note_lease(self, at: Key, view: View) -> None:
        if not isinstance(view, LeaseView):
            return
        now, before = self._wall(), self._sightings.get(at)
        after = self._sightings[at] = sight(before, view, now)
        name = names.activated(at.name)
        begins = after.is_fresh(now) and not (before is not None and before.is_fresh(now))
        if name is not None and begins:
            self.on_activation(Key(at.namespace, name))

    def _note_startup(self, before: View | None, view: View) -> None:
        """The first readiness of a pod whose start we saw: a later one is no start-up."""
        if not isinstance(view, PodView) or not view.ready or view.meta.uid in self._was_ready:
            return
        self._was_ready.add(view.meta.uid)
        seen_before = isinstance(before, PodView) and not before.ready
        if seen_before and view.meta.service and view.ready_since and view.started:
            key = Key(view.meta.namespace, view.meta.service)
            if self.service(key) is not None:  # a pod may be ready after its service went
                self._startup[key] = view.ready_since - view.started

    def _children(self, kind: Kind, key: Key) -> Iterator[View]:
        objects = self._objects.get(kind, {})
        return (objects[at] for at in sorted(self._by_service.get((kind, key), ())))

    def _link(self, kind: Kind, at: Key, view: View) -> None:
        for key in self._concerned(kind, at, view):
            self._by_service.setdefault((kind, key), set()).add(at)
        self.places.learn(at, view)
        for uid in view.meta.owners if kind is CLAIM else ():
            self._owned_claims.setdefault(uid, set()).add(at)
        if isinstance(view, ServiceView):
            self._by_uid[view.meta.uid] = at
            age = (view.meta.created, view.meta.uid)
            for other in self.ports.learn(at, view.status.gateway_port, age):
                self._wake(other)
        if isinstance(view, ServiceView) and view.spec is not None:
            for claim in claims_of(at, view.spec):
                self._claims.setdefault(claim, set()).add(at)

    def _unlink(self, kind: Kind, at: Key, view: View) -> None:
        for key in self._concerned(kind, at, view):
            _take_out(self._by_service, (kind, key), at)
        self.places.forget(at, view)
        for uid in view.meta.owners if kind is CLAIM else ():
            _take_out(self._owned_claims, uid, at)
        if isinstance(view, ServiceView):
            self._by_uid.pop(view.meta.uid, None)
        if isinstance(view, ServiceView) and view.spec is not None:
            for claim in claims_of(at, view.spec):
                _take_out(self._claims, claim, at)

    def _concerned(self, kind: Kind, at: Key, view: View) -> list[Key]:
        """What an object is filed under: its service by label, its stem for fetches."""
        stem = view.claim if isinstance(view, JobView | PodView) else None
        if kind in (SERVICE_KIND, CLAIM, LEASE):
            return []  # a Lease concerns the scaling loop only, every few seconds
        return [Key(at.namespace, name) for name in (view.meta.service, stem) if name]

    def _notify(self, kind: Kind, at: Key, view: View) -> None:
        """Wakes the services that an object concerns, once each."""
        concerned = {at} if kind in (SERVICE_KIND, CLAIM) else set(self._concerned(kind, at, view))
        keys = set(concerned)
        if kind is CLAIM or isinstance(view, JobView | PodView):
            for claim in concerned:
                keys |= self._users(claim, view)
        for key in keys:
            if kind is SERVICE_KIND or key in self._objects.get(SERVICE_KIND, {}):
                self._wake(key)

    def _users(self, claim: Key, view: View) -> set[Key]:
        """Services that use a claim, or own it still from before their spec changed."""
        users = set(self._claims.get(claim, ()))
        for uid in view.meta.owners:
            key = self._by_uid.get(uid)
            if key is not None:
                users.add(key)
        return users


def _take_out(index: dict[_Of, set[Key]], of: _Of, at: Key) -> None:
    """Leaves no empty set behind: names come and go for as long as the process lives."""
    members = index.get(of, set())
    members.discard(at)
    if not members:
        index.pop(of, None)


def claims_of(key: Key, spec: api.Spec) -> list[Key]:
    """The stems of names that a service's claim and Jobs have: see `names.fetch_job`."""
    if spec.model.uri.startswith("pvc://") or spec.cache.mode == "none":
        return []
    claim = mount_of(spec).claim
    stem = names.fetch_stem(claim or "", content_of(spec))
    return [Key(key.namespace, name) for name in dict.fromkeys((claim, stem)) if name]


def _endpoint(pod: PodView) -> PodEndpoint:
    return PodEndpoint(
        name=pod.meta.name,
        ip=pod.ip or "",
        port=names.ENGINE_PORT,
        revision=pod.revision or "",
        ready_since=pod.ready_since or 0.0,
    )


def _news(new: Meta, known: Meta) -> bool:
    """Whether a projection is newer than the known one of the same name.

    Our own writes' answers arrive before the watch tells of them. resourceVersions of one kind are
    ordered numbers: assured since Kubernetes 1.35 (KEP-5504), and so with etcd ever since.
    """
    if new.uid != known.uid:
        return new.created >= known.created
    if new.resource_version.isdecimal() and known.resource_version.isdecimal():
        return int(new.resource_version) > int(known.resource_version)
    return new.resource_version != known.resource_version
