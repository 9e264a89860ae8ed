"""Sends a plan's actions to the API server and takes its answers into the world.

What exists under a name of ours and is not ours is never touched: it becomes a `Problem`
(NameConflict). An action that the API server refuses for a reason that a person must mend becomes
one too; everything else is raised, for the queue to try again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from quire_operator import children, names
from quire_operator.actions import (
    Action,
    Annotate,
    Create,
    Delete,
    Ensure,
    Grow,
    JoinClaim,
    LeaveClaim,
    Lift,
    Nudge,
    SetReplicas,
)
from quire_operator.api import GROUP, KIND
from quire_operator.case import MAX_MESSAGE, Problem
from quire_operator.client import Api
from quire_operator.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    Invalid,
    NotFound,
    QuotaExceeded,
)
from quire_operator.kinds import (
    CLAIM,
    DEPLOYMENT,
    HPA,
    JOB,
    LEASE,
    POLLED,
    SERVICE_KIND,
    SLICE,
    Kind,
    Manifest,
)
from quire_operator.names import Key
from quire_operator.observe import Observation
from quire_operator.projections import project
from quire_operator.world import World
from quire_operator.writer import Hold, Release

logger = logging.getLogger(__name__)

BASIS = (Annotate, JoinClaim, Hold)
"""What later actions stand on: a Job goes once its end is recorded, pods come up on our claim, and
a fetch is made once it is the one that may write."""


async def scale(client: Api, key: Key, replicas: int, resource_version: str = "") -> None:
    """Writes spec.replicas through /scale, as an autoscaler would. With `resource_version` only
    over that state of the service: another may be its writer since. Raises NotLeader, Conflict,
    ApiError."""
    body: Manifest = {"spec": {"replicas": replicas}}
    if resource_version:
        body["metadata"] = {"resourceVersion": resource_version}
    await client.patch(
        SERVICE_KIND, key.namespace, key.name, body, names.MANAGER_SCALER, subresource="scale"
    )


async def look(client: Api, world: World, kind: Kind, at: Key) -> None:
    """Takes an object that no watch tells of as it is now. Raises ApiError."""
    try:
        body = await client.get(kind, at.namespace, at.name)
    except NotFound:
        world.drop(kind, at)
        return
    world.put(kind, project(kind, body))


class Applier:
    """Carries out actions for one observation, in their order."""

    def __init__(self, client: Api, world: World, seen: Observation) -> None:
        self._client = client
        self._world = world
        self._seen = seen
        self._took: Manifest | None = None
        """The claim's Lease, taken in this pass for the fetch that is made next."""
        self._doers: dict[type[Any], Callable[[Any], Awaitable[Problem | None]]] = {
            Create: self._create,
            Ensure: self._ensure,
            SetReplicas: self._set_replicas,
            Nudge: self._nudge,
            Annotate: self._annotate,
            Grow: self._grow,
            JoinClaim: self._join,
            LeaveClaim: self._leave,
            Delete: self._delete,
            Lift: self._lift,
            Hold: self._hold,
            Release: self._release,
        }

    async def run(self, actions: tuple[Action, ...]) -> tuple[Problem, ...]:
        """All actions; those after a refused one still run, unless they stand on it (`BASIS`).

        Raises NotLeader, Conflict, Unavailable: the next reconcile sees a newer world.
        """
        problems = []
        for action in actions:
            try:
                problem = await self._doers[type(action)](action)
            except QuotaExceeded as e:
                problem = Problem("QuotaExceeded", e.message)
            except Invalid as e:
                problem = Problem("Refused", f"the API server refuses an object: {e.message}")
            except Denied as e:
                problem = _denied(e)
            if problem is not None:
                problems.append(replace(problem, of_scaling=_is_of_scaling(action)))
                await self._give_back(action)
                if isinstance(action, BASIS):
                    break
        return tuple(problems)

    async def _give_back(self, refused: Action) -> None:
        """A fetch that was not let in writes no claim: nobody is to wait for it to end."""
        if self._took is None or not (isinstance(refused, Create) and refused.kind is JOB):
            return
        taken, self._took = self._took, None
        await self._empty(taken["metadata"])

    @property
    def _namespace(self) -> str:
        return self._seen.key.namespace

    def _learn(self, kind: Kind, answer: Manifest) -> None:
        self._world.put(kind, project(kind, answer))

    async def _create(self, action: Create) -> Problem | None:
        try:
            answer = await self._client.create(action.manifest, names.MANAGER)
        except AlreadyExists:
            return await self._taken(action.kind, action.manifest["metadata"]["name"])
        logger.info("[%s] created %s %s", self._seen.key, action.kind.kind, _name(answer))
        self._learn(action.kind, answer)
        return None

    async def _ensure(self, action: Ensure) -> Problem | None:
        """Force only over what is ours: a first apply yields to whatever is there already."""
        metadata = action.manifest["metadata"]
        manifest = action.manifest
        if action.live is None:
            if not await self._free(action.kind, metadata["name"]):
                return await self._taken(action.kind, metadata["name"])
        else:
            manifest = manifest | {"metadata": metadata | {"uid": action.live.meta.uid}}
        force = action.live is not None
        answer = await self._client.apply(manifest, names.MANAGER, force=force)
        logger.info("[%s] applied %s %s", self._seen.key, action.kind.kind, _name(answer))
        self._learn(action.kind, answer)
        return None

    async def _free(self, kind: Kind, name: str) -> bool:
        try:
            await self._client.get(kind, self._namespace, name)
        except NotFound:
            return True
        return False

    async def _taken(self, kind: Kind, name: str) -> Problem | None:
        """What stands under a name that we want: ours after all (the watch lags), or a stranger."""
        try:
            live = await self._client.get(kind, self._namespace, name)
        except NotFound:
            return None
        if self._is_ours(kind, live):
            self._learn(kind, live)
            return None
        owners = live["metadata"].get("ownerReferences") or []
        if any(self._is_predecessor(owner) for owner in owners):
            words = f"{kind.kind} {name} of the service's predecessor is still being removed"
            return Problem("PredecessorLeaving", words)
        owner = f"{owners[0]['kind']} {owners[0]['name']}" if owners else "nobody"
        words = (
            f"{kind.kind} {name} exists and is not ours (owned by {owner}); it is left alone: "
            "delete or rename it, or give the InferenceService another name"
        )
        return Problem("NameConflict", words)

    def _is_predecessor(self, owner: Manifest) -> bool:
        """Whether an owner is a service of this name that was before; KServe's kind is called as
        ours is, and its objects stay."""
        ours = owner["apiVersion"].startswith(f"{GROUP}/") and owner["kind"] == KIND
        return bool(ours and owner["name"] == self._seen.key.name)

    def _is_ours(self, kind: Kind, live: Manifest) -> bool:
        metadata = live["metadata"]
        if kind in (CLAIM, LEASE):
            labels = metadata.get("labels") or {}
            return bool(labels.get(names.MANAGED_BY) == names.MANAGED_BY_VALUE)
        owners = metadata.get("ownerReferences") or ()
        if any(owner["uid"] == self._seen.uid for owner in owners):
            return True
        # Another service that shares the claim may have started the same numbered fetch.
        return (metadata.get("labels") or {}).get(names.COMPONENT) == "fetch"

    async def _set_replicas(self, action: SetReplicas) -> Problem | None:
        meta = action.deployment.meta
        manifest = children.replicas(self._seen.key, meta.name, meta.uid, action.count)
        answer = await self._client.apply(manifest, names.MANAGER_REPLICAS, force=True)
        logger.info("[%s] %s now has %d replicas", self._seen.key, meta.name, action.count)
        self._learn(DEPLOYMENT, answer)
        return None

    async def _nudge(self, action: Nudge) -> Problem | None:
        kind, meta = action.kind, action.meta
        told = {names.ANNOTATION_NUDGED: f"{action.now:.0f}"}
        body = {"metadata": {"uid": meta.uid, "annotations": told}}
        answer = await self._client.patch(kind, self._namespace, meta.name, body, names.MANAGER)
        self._learn(kind, answer)
        return None

    async def _patch_claim(self, name: str, body: Manifest, *, strategic: bool = False) -> None:
        answer = await self._client.patch(
            CLAIM, self._namespace, name, body, names.MANAGER, strategic=strategic
        )
        self._learn(CLAIM, answer)

    async def _annotate(self, action: Annotate) -> Problem | None:
        meta = action.claim.meta
        body = {"metadata": {"uid": meta.uid, "annotations": dict(action.annotations)}}
        await self._patch_claim(meta.name, body)
        return None

    async def _grow(self, action: Grow) -> Problem | None:
        meta = action.claim.meta
        body = {
            "metadata": {"uid": meta.uid},
            "spec": {"resources": {"requests": {"storage": action.size}}},
        }
        try:
            await self._patch_claim(meta.name, body)
        except (Invalid, Denied) as e:
            # A class that cannot grow is no reason to stop serving: conditions tell of it.
            logger.warning("[%s] claim %s cannot grow: %s", self._seen.key, meta.name, e.message)
            note = {names.refused_size_annotation(action.size): e.message[:MAX_MESSAGE]}
            body = {"metadata": {"uid": meta.uid, "annotations": note}}
            await self._patch_claim(meta.name, body)
        return None

    async def _join(self, action: JoinClaim) -> Problem | None:
        seen, meta = self._seen, action.claim.meta
        if not action.claim.managed:
            return await self._taken(CLAIM, meta.name)
        manifest = children.claim_owner(seen.key, seen.uid, meta.name, meta.uid)
        manager = names.claim_manager(seen.uid)
        self._learn(CLAIM, await self._client.apply(manifest, manager, force=True))
        return None

    async def _leave(self, action: LeaveClaim) -> Problem | None:
        meta = action.claim.meta
        gone = [{"$patch": "delete", "uid": self._seen.uid}]
        body = {"metadata": {"uid": meta.uid, "ownerReferences": gone}}
        await self._patch_claim(meta.name, body, strategic=True)
        return None

    async def _delete(self, action: Delete) -> Problem | None:
        await self._client.delete(
            action.kind,
            self._namespace,
            action.name,
            uid=action.uid,
            resource_version=action.resource_version,
        )
        logger.info("[%s] deleted %s %s", self._seen.key, action.kind.kind, action.name)
        if action.kind is SLICE:
            # Gone at once. Until the watch tells so, pods would go to zero on the strength of it.
            self._world.drop(SLICE, Key(self._namespace, action.name), action.uid)
        if action.kind in POLLED:
            await look(self._client, self._world, action.kind, Key(self._namespace, action.name))
        return None

    async def _hold(self, action: Hold) -> Problem | None:
        """Raises Conflict where another was faster: the next reconcile sees whose turn it is."""
        manifest = children.writer_lease(self._namespace, action)
        try:
            answer = await self._hold_as(manifest, action)
        except AlreadyExists as e:
            problem = await self._taken(LEASE, _name(manifest))
            if problem is None:
                raise Conflict(e.status, f"hold {_name(manifest)}", e.message) from e
            return problem
        self._learn(LEASE, answer)
        if action.lease is None or action.lease.holder != action.holder:
            self._took = answer
            logger.info("[%s] %s now writes claim %s", self._seen.key, action.holder,
                        action.claim.meta.name)  # fmt: skip
        return None

    async def _hold_as(self, manifest: Manifest, action: Hold) -> Manifest:
        if action.lease is None:
            return await self._client.create(manifest, names.MANAGER)
        meta = action.lease.meta
        body: Manifest = {
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "spec": manifest["spec"],
        }
        name = _name(manifest)
        return await self._client.patch(LEASE, self._namespace, name, body, names.MANAGER)

    async def _release(self, action: Release) -> Problem | None:
        meta = action.lease.meta
        await self._empty(
            {"name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version}
        )
        return None

    async def _empty(self, lease: Manifest) -> None:
        """Raises Conflict where somebody else wrote it since: its holder is another's affair."""
        at = Key(self._namespace, lease["name"])
        body: Manifest = {
            "metadata": {"uid": lease["uid"], "resourceVersion": lease["resourceVersion"]},
            "spec": {"holderIdentity": None},
        }
        try:
            answer = await self._client.patch(LEASE, *at, body, names.MANAGER)
        except NotFound:
            self._world.drop(LEASE, at, lease["uid"])  # it went with its claim
            return
        self._learn(LEASE, answer)

    async def _lift(self, action: Lift) -> Problem | None:
        state = self._seen.service.meta.resource_version
        await scale(self._client, self._seen.key, action.replicas, state)
        logger.info("[%s] lifted to %d replicas", self._seen.key, action.replicas)
        return None


def _denied(error: Denied) -> Problem:
    """RBAC says who cannot do what; all else is an admission plugin's word on the object."""
    if 'User "' in error.message and " cannot " in error.message:
        return Problem("Forbidden", f"the operator may not do this: {error.message}")
    return Problem("Refused", f"the API server refuses an object: {error.message}")


def _is_of_scaling(action: Action) -> bool:
    """What goes wrong with an autoscaler is no reason to call the service not ready."""
    if isinstance(action, Lift):
        return True
    return isinstance(action, Create | Ensure | Delete) and action.kind in (HPA, *POLLED)


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])
