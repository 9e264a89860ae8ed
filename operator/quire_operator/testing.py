"""An API server in memory that behaves, for tests.

Server-side apply with field owners, preconditions, conflicts, resourceVersions, garbage collection;
and controllers that make pods of Deployments and Jobs when told to. No admission, no defaults
and no schema: what it does it does as the real one, the rest not at all.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quire_operator import names, testing_fields
from quire_operator.api import Condition, Status
from quire_operator.errors import AlreadyExists, ApiError, Conflict, Invalid, NotFound
from quire_operator.event_reader import EventReader
from quire_operator.fetch_environment import Network
from quire_operator.inquirer import Inquirer, Sources
from quire_operator.kinds import (
    CHILDREN,
    CLAIM,
    DEPLOYMENT,
    JOB,
    POD,
    SERVICE,
    SERVICE_KIND,
    SLICE,
    Kind,
    Manifest,
    kind_of,
)
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.nodes import NodeReader
from quire_operator.observe import Defaults
from quire_operator.plan_places import PLACES
from quire_operator.projections import project
from quire_operator.reconcile import Reconciler
from quire_operator.scaled_objects import ScaledObjectPoller
from quire_operator.testing_answers import FakeEngines, FakeProgress
from quire_operator.testing_endpoints import activation_lease, selector_slice
from quire_operator.testing_fields import (
    Path,
    copied,
    is_selected,
    leaves,
    merge_patch,
    set_at,
    take_back,
    value_at,
)
from quire_operator.testing_pods import PLAN_REPORT, engine_pod_status, job_pod_status
from quire_operator.values import timestamp
from quire_operator.views import Gateway
from quire_operator.world import World

Event = Callable[[Kind, str, Manifest], None]
"""Kind, "MODIFIED" or "DELETED", object."""

IDENTITY = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
COMPONENT = ("metadata", "labels", names.COMPONENT)
PRECONDITIONS = {("metadata", "uid"), ("metadata", "resourceVersion")}


@dataclass
class _Stored:
    body: Manifest
    owners: dict[str, set[Path]] = field(default_factory=dict)


class FakeCluster:
    """`client.Api` over dictionaries. `writes` lists what was sent, as "VERB kind/name"."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self.writes: list[str] = []
        self.refuse: dict[Kind, ApiError] = {}
        """Errors for writes to a kind: a quota, an outage."""
        self.unknown: set[Kind] = set()
        """Kinds whose definitions are not installed."""
        self.plans: dict[str, object] | None = dict(PLAN_REPORT)
        """What plan Jobs answer as soon as they are made, ill if it has a reason. None: they wait
        for `run_jobs`."""
        self._objects: dict[tuple[Kind, Key], _Stored] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self._listeners: list[Event] = []

    # ---- Api ----

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        return copied(self._stored(kind, Key(namespace, name)).body)

    async def list_objects(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> list[Manifest]:
        self._know(kind)
        of_kind = (
            stored.body
            for (of, at), stored in self._objects.items()
            if of is kind and namespace in (None, at.namespace)
        )
        return [copied(body) for body in of_kind if is_selected(body, labels, fields)]

    async def list_pages(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", size: int
    ) -> AsyncIterator[list[Manifest]]:
        found = await self.list_objects(kind, namespace, labels=labels, fields=fields)
        for begin in range(0, len(found), size):
            yield found[begin : begin + size]

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        kind, at = self._begin("POST", manifest)
        if (kind, at) in self._objects:
            raise AlreadyExists(409, f"POST {kind.plural}", f"{at.name} exists", "AlreadyExists")
        made = self._insert(kind, at, manifest, manager)
        if self.plans is not None and value_at(made, COMPONENT) == names.PLAN_CONTAINER:
            self.end_job(made, self.plans)
        return made

    async def apply(
        self, manifest: Manifest, manager: str, *, force: bool, subresource: str = ""
    ) -> Manifest:
        kind, at = self._begin("PATCH", manifest)
        stored = self._objects.get((kind, at))
        if stored is None:
            if "uid" in manifest["metadata"]:
                raise Conflict(409, f"PATCH {kind.plural}", "uid differs: the object is gone")
            if "spec" not in manifest and kind is not SLICE:
                raise Invalid(422, f"PATCH {kind.plural}", "spec is required")
            return self._insert(kind, at, manifest, manager)
        self._check(stored, manifest["metadata"])
        before = copied(stored.body)
        mine = {
            path
            for path in leaves(manifest)
            if path not in IDENTITY | PRECONDITIONS
            and (path[0] == "status") is (subresource == "status")
        }
        owner = f"{manager}/{subresource}"
        live, owners = stored.body, stored.owners
        testing_fields.settle_conflicts(live, owners, owner, manifest, mine, force=force)
        for path in stored.owners.get(owner, set()) - mine:
            if not any(path in paths for who, paths in stored.owners.items() if who != owner):
                take_back(stored.body, path)
        stored.owners[owner] = mine
        for path in sorted(mine):
            set_at(stored.body, path, value_at(manifest, path))
        return self._changed(kind, at, stored, before)

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Manifest,
        manager: str,
        *,
        strategic: bool = False,
        subresource: str = "",
    ) -> Manifest:
        at = Key(namespace, name)
        self._begin(
            "PATCH", {"kind": kind.kind, "metadata": {"namespace": namespace, "name": name}}
        )
        stored = self._stored(kind, at)
        self._check(stored, body.get("metadata") or {})
        before = copied(stored.body)
        merge_patch(stored.body, body, strategic=strategic)
        return self._changed(kind, at, stored, before)

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
    ) -> None:
        at = Key(namespace, name)
        self.writes.append(f"DELETE {kind.kind}/{name}")
        stored = self._objects.get((kind, at))
        if stored is None:
            return
        wanted = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        self._check(stored, wanted)
        self._dispose(kind, at)

    # ---- what a test does ----

    def subscribe(self, listener: Event) -> None:
        """Tells the listener of every change, as a watch would."""
        self._listeners.append(listener)

    def put(self, manifest: Manifest, manager: str = "kubectl") -> Manifest:
        """Creates or replaces an object as a user or a controller would; status included."""
        kind = kind_of(manifest)
        at = Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        stored = self._objects.get((kind, at))
        if stored is None:
            return self._insert(kind, at, manifest, manager)
        before = copied(stored.body)
        for part in set(stored.body) - {"metadata", "apiVersion", "kind"}:
            stored.body[part] = copied(manifest.get(part, stored.body[part]))
        for part in set(manifest) - {"metadata"}:
            stored.body[part] = copied(manifest[part])
        stored.body["metadata"] |= copied(manifest["metadata"])
        return self._changed(kind, at, stored, before)

    def remove(self, kind: Kind, at: Key) -> None:
        """Deletes an object and, as garbage collection does, what only it owned."""
        stored = self._objects.pop((kind, at), None)
        if stored is None:
            return
        self._tell(kind, "DELETED", stored.body)
        alive = {s.body["metadata"]["uid"] for s in self._objects.values()}
        for (of, where), child in list(self._objects.items()):
            if (of, where) not in self._objects:
                continue  # went with another one
            owners = child.body["metadata"].get("ownerReferences") or []
            kept = [owner for owner in owners if owner["uid"] in alive]
            if owners and not kept:
                self._dispose(of, where)
            elif len(kept) < len(owners):
                before = copied(child.body)
                child.body["metadata"]["ownerReferences"] = kept
                self._changed(of, where, child, before)

    def _dispose(self, kind: Kind, at: Key) -> None:
        """Removes, or marks what a finalizer holds."""
        stored = self._objects[kind, at]
        if not stored.body["metadata"].get("finalizers"):
            self.remove(kind, at)
        elif "deletionTimestamp" not in stored.body["metadata"]:
            before = copied(stored.body)
            stored.body["metadata"]["deletionTimestamp"] = timestamp(self.now)
            self._changed(kind, at, stored, before)

    def all(self, kind: Kind) -> list[Manifest]:
        """Copies of all objects of a kind."""
        return [copied(s.body) for (of, _), s in self._objects.items() if of is kind]

    def set_status(self, kind: Kind, at: Key, status: Manifest) -> None:
        stored = self._stored(kind, at)
        before = copied(stored.body)
        stored.body["status"] = copied(status)
        self._changed(kind, at, stored, before)

    # ---- controllers ----

    def bind_claims(self) -> None:
        for claim in self.all(CLAIM):
            self.set_status(CLAIM, _at(claim), {"phase": "Bound"})

    def run_jobs(self, message: dict[str, object] | None = None) -> None:
        """Runs new Jobs; with a message ends them, ill if it has a reason."""
        for job in self.all(JOB):
            status = job.get("status") or {}
            if status.get("conditions"):
                continue
            if message is None:
                self._job_pod(job, None)
            else:
                self.end_job(job, message)

    def end_job(self, job: Manifest, message: Mapping[str, object]) -> None:
        """Its pod ends with this message, ill if that has a reason."""
        self._job_pod(job, message)
        kind = "Failed" if "reason" in message else "Complete"
        done = {"type": kind, "status": "True", "lastTransitionTime": timestamp(self.now)}
        self.set_status(JOB, _at(job), {"conditions": [done]})

    def _job_pod(self, job: Manifest, message: Mapping[str, object] | None) -> None:
        template = copied(job["spec"]["template"])
        name = job["metadata"]["name"]
        template["metadata"]["labels"]["batch.kubernetes.io/job-name"] = name
        container = template["spec"]["containers"][0]["name"]
        self._pod(f"{name}-pod", job, template, job_pod_status(container, message, self.now))

    def run_deployments(self, ready: bool = True, *, endpoints: bool = True) -> None:
        """Makes the pods that Deployments ask for, ready or not, and removes surplus ones; without
        `endpoints` the Services do not know of them yet."""
        for deployment in self.all(DEPLOYMENT):
            count, stem = deployment["spec"]["replicas"], deployment["metadata"]["name"]
            for index in range(count):
                status = engine_pod_status(index, ready, self.now)
                self._pod(f"{stem}-{index}", deployment, deployment["spec"]["template"], status)
            for pod in self.all(POD):
                stem_of, _, index_of = pod["metadata"]["name"].rpartition("-")
                if stem_of == stem and index_of.isdigit() and int(index_of) >= count:
                    self.remove(POD, _at(pod))
            generation = deployment["metadata"]["generation"]
            status = {"observedGeneration": generation, "readyReplicas": count if ready else 0}
            self.set_status(DEPLOYMENT, _at(deployment), status)
        if endpoints:
            self.run_endpoints()

    def run_endpoints(self) -> None:
        """The EndpointSlices of all selectors."""
        for service in self.all(SERVICE):
            self.put(selector_slice(service, self.all(POD)), "controller")

    def activate(self, key: Key, seconds: int = 15, *, ahead: float = 0.0) -> None:
        """Writes the activation Lease, or renews it, as one does who holds requests. `ahead`: how
        far the writer's clock is before ours."""
        self.put(activation_lease(key, seconds, self.now + ahead), "gateway")

    def _pod(self, name: str, owner: Manifest, template: Manifest, status: Manifest) -> None:
        metadata = owner["metadata"]
        reference = {"kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
        head = {
            "namespace": metadata["namespace"],
            "name": name,
            "ownerReferences": [reference],
            **template["metadata"],
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": template["spec"]}
        self.put(body | {"status": status}, "controller")

    # ---- inside ----

    def _begin(self, verb: str, manifest: Manifest) -> tuple[Kind, Key]:
        kind = kind_of(manifest)
        at = Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        self.writes.append(f"{verb} {kind.kind}/{at.name}")
        self._know(kind)
        if kind in self.refuse:
            raise self.refuse[kind]
        return kind, at

    def _know(self, kind: Kind) -> None:
        if kind in self.unknown:
            words = "the server could not find the requested resource"
            raise NotFound(404, f"{kind.plural}", words, "NotFound")

    def _stored(self, kind: Kind, at: Key) -> _Stored:
        self._know(kind)
        if (kind, at) not in self._objects:
            raise NotFound(404, f"{kind.plural}/{at}", "not found")
        return self._objects[kind, at]

    def _check(self, stored: _Stored, wanted: Manifest) -> None:
        have = stored.body["metadata"]
        for name in ("uid", "resourceVersion"):
            if name in wanted and wanted[name] != have[name]:
                raise Conflict(409, have["name"], f"{name} is {have[name]}, not {wanted[name]}")

    def _insert(self, kind: Kind, at: Key, manifest: Manifest, manager: str) -> Manifest:
        body = copied(manifest)
        body["metadata"] |= {
            "uid": f"uid-{next(self._uids)}",
            "resourceVersion": str(next(self._versions)),
            "generation": 1,
            "creationTimestamp": timestamp(self.now),
        }
        owned = {path for path in leaves(manifest) if path not in IDENTITY | PRECONDITIONS}
        self._objects[kind, at] = _Stored(body, {f"{manager}/": owned})
        self._tell(kind, "MODIFIED", body)
        return copied(body)

    def _changed(self, kind: Kind, at: Key, stored: _Stored, before: Manifest) -> Manifest:
        if stored.body != before:
            if stored.body.get("spec") != before.get("spec"):
                stored.body["metadata"]["generation"] += 1
            stored.body["metadata"]["resourceVersion"] = str(next(self._versions))
            self._tell(kind, "MODIFIED", stored.body)
        return copied(stored.body)

    def _tell(self, kind: Kind, event: str, body: Manifest) -> None:
        for listener in self._listeners:
            listener(kind, event, copied(body))


def _at(manifest: Manifest) -> Key:
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def service_manifest(name: str = "chat", namespace: str = "default", **spec: Any) -> Manifest:
    """An InferenceService as a user would write it; `spec` over a smallest one."""
    model = {"uri": "hf://org/model"}
    return {
        "apiVersion": SERVICE_KIND.api_version,
        "kind": SERVICE_KIND.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": model, "replicas": 1, **spec},
    }


def node_manifest(name: str, labels: Mapping[str, str]) -> Manifest:
    """A node, as its cluster has it."""
    metadata = {"name": name, "namespace": "", "labels": dict(labels)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}


class Rig:
    """A control plane over a FakeCluster: watches never lag, a test moves the clock."""

    def __init__(
        self,
        image: str = "engine:v1",
        network: Network | None = None,
        cluster: FakeCluster | None = None,
        keda_scaler: str | None = "quire-keda.quire-system.svc:9100",
        plan_places: int = PLACES,
    ) -> None:
        self.cluster = cluster or FakeCluster()
        self.woken: dict[Key, None] = {}
        self.world = World(lambda key: self.woken.setdefault(key), lambda: self.cluster.now)
        self.progress = FakeProgress()
        self.engines = FakeEngines()
        self.nodes = NodeReader(self.cluster, lambda: self.cluster.now)
        defaults = Defaults(
            image=image,
            network=network or Network(),
            keda_scaler=keda_scaler,
            plan_places=plan_places,
        )
        self.inquirer = Inquirer(
            self.world,
            defaults,
            Sources(
                EventReader(self.cluster, lambda: self.cluster.now), self.progress, self.engines
            ),
            wake=lambda key: self.woken.setdefault(key),
            wall=lambda: self.cluster.now,
        )
        self.again: dict[Key, float | None] = {}
        self.scaled_objects = ScaledObjectPoller(self.cluster, self.world, ())
        self.cluster.subscribe(self._feed)
        self.reconciler = Reconciler(
            client=self.cluster,
            world=self.world,
            defaults=defaults,
            inquirer=self.inquirer,
            nodes=self.nodes,
            metrics=Metrics(),
            is_leader=lambda: True,
            wall=lambda: self.cluster.now,
        )

    def _feed(self, kind: Kind, event: str, body: Manifest) -> None:
        at = _at(body)
        if kind not in (SERVICE_KIND, *CHILDREN):
            return
        if event == "DELETED":
            self.world.drop(kind, at, body["metadata"]["uid"])
        else:
            self.world.put(kind, project(kind, body))

    def gateway(self, *addresses: str) -> None:
        """A gateway is configured, and these are its pods."""
        self.world.set_gateway(Gateway(addresses))

    async def settle(self, limit: int = 60) -> None:
        """Reconciles what is woken, and asks about it, until nothing is. Fails if that does not
        end."""
        for _ in range(limit):
            if not self.woken:
                await self.inquirer.drain()
            if not self.woken:
                return
            key = next(iter(self.woken))
            del self.woken[key]
            self.again[key] = await self.reconciler(key)
        raise AssertionError(f"no end after {limit} reconciles: {self.cluster.writes[-10:]}")

    async def wake(self, key: Key) -> list[str]:
        """Reconciles a key though nothing happened; returns what was written meanwhile."""
        before = len(self.cluster.writes)
        self.woken[key] = None
        await self.settle()
        return self.cluster.writes[before:]

    async def bring_up(self, key: Key, **report: object) -> None:
        """Lets the controllers do all they would until the service is as it should be."""
        await self.settle()
        for _ in range(4):
            self.cluster.bind_claims()
            self.cluster.run_jobs({"commit": "c0ffee", "bytesTotal": 1000, **report})
            await self.settle()
            self.cluster.run_deployments()
            await self.settle()

    def status(self, key: Key) -> Status:
        service = self.world.service(key)
        assert service is not None
        return service.status

    def condition(self, key: Key, kind: str = "Ready") -> Condition:
        """One condition of a service, as written."""
        return next(c for c in self.status(key).conditions if c.type == kind)
