"""Asks what no watch tells, of what holds a service up: a fetch's bytes, an engine's own word, and
the events of a claim, a Job or a pod. Bounded: one list of events each, at most MAX_UNCLEAR pods.

Events are not watched: those of all namespaces are most of what an API server writes, and we want
those of objects in trouble only.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from quire_operator import fit, memory_plan
from quire_operator.client import Api
from quire_operator.engines import EngineSource
from quire_operator.errors import ApiError
from quire_operator.kinds import EVENT, Manifest
from quire_operator.nodes import NodeSource
from quire_operator.observe import EngineAnswer, Observation, PodEvent, Progress
from quire_operator.progress import ProgressSource
from quire_operator.projections import epoch
from quire_operator.views import GpuNode, JobView, PodView

logger = logging.getLogger(__name__)

EVENTS_AFTER_SECONDS = 3.0
"""What has only just begun is given this long before its events are read for what holds it up."""
PROVISIONING_SECONDS = 10.0
"""A provisioner takes some seconds; afterwards that it is waited for is what holds the claim up."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Who is asked."""

    client: Api
    progress: ProgressSource
    engines: EngineSource
    nodes: NodeSource

    async def ask(self, seen: Observation) -> Observation:
        """The observation with the answers in it."""
        fetching = _fetching_pod(seen)
        progress, claim_event, job_event, plan_event, events, answers = await asyncio.gather(
            self._progress(fetching, seen.now),
            self._of_claim(seen),
            self._of_job(seen, seen.jobs),
            self._of_job(seen, seen.plan_jobs),
            self._of_pods(seen),
            self._of_engines(seen),
        )
        return replace(
            seen,
            progress=progress,
            claim_event=claim_event,
            job_event=job_event,
            plan_event=plan_event,
            pod_events=events,
            answers=answers,
            gpu_nodes=await self._of_nodes(seen),
        )

    async def _progress(self, pod: PodView | None, now: float) -> Progress | None:
        return await self.progress.read(pod.ip, now) if pod is not None and pod.ip else None

    async def _of_claim(self, seen: Observation) -> str | None:
        claim = seen.claim
        if claim is None or claim.phase != "Pending" or not _old(seen, claim.meta.created):
            return None
        telling = {"FailedBinding"}
        if seen.now - claim.meta.created > PROVISIONING_SECONDS:
            telling.add("ExternalProvisioning")
        found = await self._events(seen, "PersistentVolumeClaim", claim.meta.uid)
        return next((e.message for e in found if e.is_warning or e.reason in telling), None)

    async def _of_nodes(self, seen: Observation) -> tuple[GpuNode, ...]:
        if not fit.asks_nodes(seen):
            return ()
        return await self.nodes.read(memory_plan.memory_label(seen.spec))

    async def _of_job(self, seen: Observation, jobs: tuple[JobView, ...]) -> str | None:
        job = jobs[-1] if jobs else None
        if job is None or not _lacks_pod(seen, job):
            return None
        found = await self._events(seen, "Job", job.meta.uid)
        return next((event.message for event in found if event.is_warning), None)

    async def _of_pods(self, seen: Observation) -> dict[str, tuple[PodEvent, ...]]:
        pods = [pod for pod in seen.unclear_pods if _has_news(seen, pod)]
        lists = [self._events(seen, "Pod", pod.meta.uid) for pod in pods]
        found = await asyncio.gather(*lists)
        return {pod.meta.uid: events for pod, events in zip(pods, found, strict=True)}

    async def _of_engines(self, seen: Observation) -> dict[str, EngineAnswer]:
        pods = [pod for pod in seen.unclear_pods if _runs(pod)]
        answers = await asyncio.gather(*(self.engines.ready(pod.ip or "") for pod in pods))
        return {pod.meta.uid: answer for pod, answer in zip(pods, answers, strict=True)}

    async def _events(self, seen: Observation, kind: str, uid: str) -> tuple[PodEvent, ...]:
        """The newest first; none where they cannot be read."""
        fields = f"involvedObject.kind={kind},involvedObject.uid={uid}"
        try:
            found = await self.client.list_objects(EVENT, seen.key.namespace, fields=fields)
        except ApiError as e:
            logger.warning("[%s] events of %s not read: %s", seen.key, kind, e)
            return ()
        return tuple(sorted(map(_event, found), key=lambda event: -event.at))


def carry(asked: Observation, after: Observation) -> Observation:
    """A later look at the same service, with what was asked before it."""
    return replace(
        after,
        progress=asked.progress,
        claim_event=asked.claim_event,
        job_event=asked.job_event,
        plan_event=asked.plan_event,
        gpu_nodes=asked.gpu_nodes,
        pod_events=asked.pod_events,
        answers=asked.answers,
    )


def _event(body: Manifest) -> PodEvent:
    told = body.get("lastTimestamp") or body.get("eventTime")
    again = (body.get("series") or {}).get("lastObservedTime")
    return PodEvent(
        reason=str(body.get("reason", "")),
        message=str(body.get("message", "")),
        is_warning=body.get("type") == "Warning",
        at=epoch(again or told) or 0.0,
    )


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
    pods = (*seen.fetch_pods, *seen.plan_pods)
    alone = not any(pod.job == job.meta.name for pod in pods)
    return alone and job.finished is None and _old(seen, job.meta.created)


def _runs(pod: PodView) -> bool:
    return pod.job is None and pod.main is not None and pod.main.running and bool(pod.ip)


def _has_news(seen: Observation, pod: PodView) -> bool:
    """Whether events may tell of a pod what its status does not."""
    return _old(seen, pod.started or pod.meta.created)


def _old(seen: Observation, created: float) -> bool:
    return seen.now - created > EVENTS_AFTER_SECONDS
