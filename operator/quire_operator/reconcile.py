"""One reconcile: observe → plan → apply → status. Level-based: it looks at all there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from quire_operator import api, status
from quire_operator.apply import Applier, look
from quire_operator.case import Case, Problem
from quire_operator.client import Api
from quire_operator.errors import ApiError, NotFound, NotLeader
from quire_operator.kinds import BY_NAME, CLAIM, EVENT, POLLED
from quire_operator.metrics import Metrics
from quire_operator.names import Key
from quire_operator.observe import Defaults, Observation, observe
from quire_operator.plan import Plan, plan
from quire_operator.pods import mount_of
from quire_operator.progress import ProgressSource
from quire_operator.projections import project
from quire_operator.views import JobView, PodView, ServiceView
from quire_operator.world import World

logger = logging.getLogger(__name__)

PROBLEM_SECONDS = 10.0
"""How often a refused object is tried again: nothing tells us when a person has mended it."""
EVENTS_AFTER_SECONDS = 3.0
"""A claim or Job is given this long before its events are read for what holds it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    """Reconciles services by key. Holds no state: the world does."""

    client: Api
    world: World
    defaults: Defaults
    progress: ProgressSource
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
            return None
        if service.spec is None:
            invalid = status.build_invalid(service, self.wall())
            await status.write(self.client, self.world, service, invalid)
            return None
        # Before anything is waited for: one who goes meanwhile would be given a port for ever.
        self._hold_port(key, service.spec)
        await self._see_foreign_claim(key, service)
        await self._see_leaving_autoscalers(key)
        seen = observe(self.world, key, service, service.spec, self.defaults, self.wall())
        seen = await self._ask_around(seen)
        wanted = plan(seen)
        problems = await Applier(self.client, self.world, seen).run(wanted.actions)
        self._count(seen, wanted)
        await self._tell(seen, problems)
        return _soonest(wanted.again_seconds, PROBLEM_SECONDS if problems else None)

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
        after = observe(self.world, seen.key, service, service.spec, self.defaults, self.wall())
        after = replace(
            after,
            progress=seen.progress,
            claim_event=seen.claim_event,
            job_event=seen.job_event,
        )
        case = Case(after, plan(after), problems)
        try:
            await status.write(self.client, self.world, service, status.build(case))
        except NotFound:
            logger.info("[%s] gone before its status was written", seen.key)

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

    async def _ask_around(self, seen: Observation) -> Observation:
        """What no watch tells: a fetch's bytes, and events on what is stuck."""
        progress, claim_event, job_event = None, None, None
        pod = _fetching_pod(seen)
        if pod is not None and pod.ip:
            progress = await self.progress.read(pod.ip, seen.now)
        claim = seen.claim
        if claim is not None and claim.phase == "Pending" and _old(seen, claim.meta.created):
            claim_event = await self._event(seen.key, "PersistentVolumeClaim", claim.meta.uid)
        job = seen.jobs[-1] if seen.jobs else None
        if job is not None and _lacks_pod(seen, job):
            job_event = await self._event(seen.key, "Job", job.meta.uid)
        return replace(seen, progress=progress, claim_event=claim_event, job_event=job_event)

    async def _event(self, key: Key, kind: str, uid: str) -> str | None:
        """The newest event's words that tell of trouble; waiting for a consumer is none."""
        fields = f"involvedObject.kind={kind},involvedObject.uid={uid}"
        try:
            events = await self.client.list_objects(EVENT, key.namespace, fields=fields)
        except ApiError as e:
            logger.warning("[%s] events of %s not read: %s", key, kind, e)
            return None
        bad = [
            e for e in events if e.get("type") == "Warning" or e.get("reason") == "FailedBinding"
        ]
        bad.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
        return str(bad[-1].get("message", "")) if bad else None


def _fetching_pod(seen: Observation) -> PodView | None:
    """A Job's pod, or a pod whose own init container fetches."""
    job = seen.jobs[-1].meta.name if seen.jobs else None
    for pod in seen.fetch_pods:
        if pod.job == job and pod.main is not None and pod.main.running:
            return pod
    for pod in seen.current_pods:
        if pod.init is not None and pod.init.running:
            return pod
    return None


def _lacks_pod(seen: Observation, job: JobView) -> bool:
    alone = not any(pod.job == job.meta.name for pod in seen.fetch_pods)
    return alone and job.finished is None and _old(seen, job.meta.created)


def _old(seen: Observation, created: float) -> bool:
    return seen.now - created > EVENTS_AFTER_SECONDS


def _soonest(*delays: float | None) -> float | None:
    return min((d for d in delays if d is not None), default=None)
