"""One reconcile: observe → plan → apply → status. Level-based: it looks at all there is.

It waits for the API server and for nobody else: what pods are asked goes on beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from quire_operator import api, events, fit, inquiry, memory_plan, names, ready_events, status
from quire_operator.apply import Applier, look
from quire_operator.case import Case, Problem
from quire_operator.client import Api
from quire_operator.errors import ApiError, NotFound, NotLeader
from quire_operator.inquirer import Inquirer
from quire_operator.kinds import BY_NAME, CLAIM, POLLED
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.nodes import NodeSource
from quire_operator.observe import Defaults, Observation, observe
from quire_operator.plan import Plan, plan
from quire_operator.pods import mount_of
from quire_operator.projections import project
from quire_operator.views import GpuNode, ServiceView
from quire_operator.world import World

logger = logging.getLogger(__name__)

PROBLEM_SECONDS = 10.0
"""How often a refused object is tried again: nothing tells us when a person has mended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    """Reconciles services by key. Holds no state: the world does."""

    client: Api
    world: World
    defaults: Defaults
    inquirer: Inquirer
    nodes: NodeSource
    metrics: Metrics
    is_leader: Callable[[], bool]
    wall: Callable[[], float] = time.time

    async def __call__(self, key: Key) -> float | None:
        """Brings one service to what its spec asks for; returns when to look again, in seconds.

        Raises ApiError where the API server is in the way; the queue tries again.
        """
        if not self.is_leader():
            return None
        began = time.monotonic()
        try:
            again = await self._reconcile(key)
        except NotLeader:
            return None
        except Exception as e:
            self.metrics.reconciled(time.monotonic() - began, type(e).__name__)
            raise
        self.metrics.reconciled(time.monotonic() - began, None)
        return again

    async def _reconcile(self, key: Key) -> float | None:
        service = self.world.service(key)
        # Deletion first, whatever else is broken: garbage collection does all of it.
        if service is None or service.meta.deleting:
            self.inquirer.forget(key)
            return None
        if service.spec is None:
            invalid = status.build_invalid(service, self.wall())
            await self._write(service, invalid)
            return None
        # Before anything is waited for: one who goes meanwhile would be given a port for ever.
        self._hold_port(key, service.spec)
        await self._see_foreign_claim(key, service)
        await self._see_leaving_autoscalers(key)
        seen = self._see(key, service, service.spec)
        seen = replace(seen, gpu_nodes=await self._gpu_nodes(seen))
        wanted = plan(seen)
        problems = await Applier(self.client, self.world, seen).run(wanted.actions)
        self._count(seen, wanted)
        await self._tell(seen, problems)
        return _soonest(wanted.again_seconds, PROBLEM_SECONDS if problems else None)

    def _see(self, key: Key, service: ServiceView, spec: api.Spec) -> Observation:
        seen = observe(self.world, key, service, spec, self.defaults, self.wall())
        return inquiry.hear(seen, self.inquirer.told(key))

    async def _gpu_nodes(self, seen: Observation) -> tuple[GpuNode, ...]:
        if not fit.asks_nodes(seen):
            return ()
        return await self.nodes.read(memory_plan.memory_label(seen.spec))

    def _count(self, seen: Observation, done: Plan) -> None:
        """A fetch whose end has just been recorded on the claim."""
        claim = self.world.claim(Key(seen.key.namespace, seen.mount.claim or ""))
        told = claim.meta.annotations if claim is not None else {}
        if not done.fetch.note or any(told.get(k) != v for k, v in done.fetch.note):
            return
        failure, record = done.fetch.failure, done.fetch.record
        if failure is not None:
            self.metrics.downloaded(failure.reason)
        elif record is not None:
            self.metrics.downloaded("ok", record.bytes_total or 0)

    async def _tell(self, seen: Observation, problems: tuple[Problem, ...]) -> None:
        """Status from the world as it is after applying, so that one pass tells the news."""
        service = self.world.service(seen.key)
        if service is None or service.spec is None:
            return
        after = self._see(seen.key, service, service.spec)
        after = replace(after, gpu_nodes=seen.gpu_nodes)
        is_told = service.status.observed_generation == service.generation
        if self.inquirer.consider(after) and is_told:
            return  # half of the truth would be told, and posted, until the answer comes
        case = Case(after, plan(after), problems)
        try:
            await self._write(service, status.build(case))
        except NotFound:
            logger.info("[%s] gone before its status was written", seen.key)

    async def _write(self, service: ServiceView, new: api.Status) -> None:
        """After the status, so that a turn is posted at most once: who comes after a crash between
        the two finds it told."""
        if not await status.write(self.client, self.world, service, new):
            return
        note = ready_events.note(service.status.conditions, new.conditions)
        if note is None:
            return
        key = Key(service.meta.namespace, service.meta.name)
        now = datetime.fromtimestamp(self.wall(), UTC)
        event = events.manifest(key, service.meta.uid, note, now, names.MANAGER)
        try:
            await self.client.create(event, names.MANAGER)
        except ApiError as e:
            logger.warning("[%s] event %s not posted: %s", key, note.reason, e)

    def _hold_port(self, key: Key, spec: api.Spec) -> None:
        """Here and nowhere else, so that only the leader gives ports out."""
        if spec.scaling.idle_seconds_to_zero is None:
            self.world.ports.release(key)
            return
        before = self.world.ports.port(key)
        port = self.world.ports.hold(key)
        if port is None:
            logger.error("[%s] no gateway port is free: too many services may sleep", key)
        elif port != before and before is not None:
            logger.warning("[%s] gateway port %d is another's, now %d", key, before, port)

    async def _see_leaving_autoscalers(self, key: Key) -> None:
        """Whose end no watch tells of, and the other mode waits for."""
        for view in self.world.autoscalers(key):
            if view.meta.deleting and BY_NAME[view.kind] in POLLED:
                at = Key(key.namespace, view.meta.name)
                await look(self.client, self.world, BY_NAME[view.kind], at)

    async def _see_foreign_claim(self, key: Key, service: ServiceView) -> None:
        """A claim of the user's carries no label of ours, so that no watch tells of it."""
        assert service.spec is not None
        if service.spec.cache.mode != "existing" or service.spec.model.uri.startswith("pvc://"):
            return
        at = Key(key.namespace, mount_of(service.spec).claim or "")
        try:
            body = await self.client.get(CLAIM, at.namespace, at.name)
        except NotFound:
            self.world.drop(CLAIM, at)
            return
        self.world.put(CLAIM, project(CLAIM, body))


def _soonest(*delays: float | None) -> float | None:
    return min((d for d in delays if d is not None), default=None)
