"""Reads all that there is of one service: one request for each part, all at once.

A part that cannot be read (no right to, an API server in trouble) is noted and left out; only the
service itself must be there. Nothing here writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from quire_operator import api, names
from quire_operator.client import Reads
from quire_operator.console import complaints
from quire_operator.console.events import EventView, event_of
from quire_operator.errors import ApiError, Denied, NotFound
from quire_operator.kinds import CLAIM, DEPLOYMENT, EVENT, JOB, POD, SERVICE_KIND, Kind
from quire_operator.names import Key
from quire_operator.observe import Progress
from quire_operator.pods import content_of, mount_of
from quire_operator.progress import parse_progress
from quire_operator.projections import project
from quire_operator.scraper import Missing, PodMetrics, parse
from quire_operator.views import ClaimView, DeploymentView, JobView, PodView, ServiceView, View

PAGE_SECONDS = 2.0
T = TypeVar("T")
V = TypeVar("V", bound=View)


class Reader(Reads, Protocol):
    """What the console asks of a cluster: of `client.KubeClient`, or of a test's fake."""

    async def page(self, at: Key, port: int, path: str, seconds: float) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One service and what is around it. `unseen`: (part, why) of what could not be read."""

    now: float
    key: Key
    service: ServiceView
    pods: tuple[PodView, ...] = ()
    deployments: tuple[DeploymentView, ...] = ()
    claim: ClaimView | None = None
    jobs: tuple[JobView, ...] = ()
    fetch_pods: tuple[PodView, ...] = ()
    plan_jobs: tuple[JobView, ...] = ()
    """By attempt."""
    plan_pods: tuple[PodView, ...] = ()
    events: tuple[EventView, ...] = ()
    answers: dict[str, PodMetrics | Missing] = field(default_factory=dict)
    """By pod: what its /metrics says."""
    progress: Progress | None = None
    unseen: tuple[tuple[str, str], ...] = ()

    def lacks(self, part: str) -> bool:
        """Whether a part could not be read, so that its emptiness says nothing."""
        return any(name == part for name, _ in self.unseen)

    @property
    def claim_name(self) -> str | None:
        return claim_name(self.service.spec)


def claim_name(spec: api.Spec | None) -> str | None:
    """The claim that the spec's model lies on, if on any."""
    return mount_of(spec).claim if spec is not None else None


class _Parts:
    """Awaits parts, and notes those that fail."""

    def __init__(self) -> None:
        self.unseen: list[tuple[str, str]] = []

    async def have(self, part: str, request: Awaitable[T], default: T) -> T:
        try:
            return await request
        except NotFound:
            return default
        except Denied as error:
            self.unseen.append((part, f"forbidden: {error.message}"))
        except ApiError as error:
            self.unseen.append((part, str(error)))
        return default


async def read(reader: Reader, key: Key, now: float, place: str) -> Seen:
    """Everything of the service. Raises ConsoleError when there is nothing to show."""
    service = await _service(reader, key, place)
    parts = _Parts()
    # Whatever is the service's: its plans' pods lack our app's label, as they are no endpoints.
    mine = f"{names.LABEL_SERVICE}={key.name}"
    deployments, pods, claim, jobs, asked, events = await asyncio.gather(
        parts.have("revisions", _list(reader, DEPLOYMENT, key, mine, DeploymentView), []),
        parts.have("pods", _list(reader, POD, key, mine, PodView), []),
        parts.have("claim", _claim(reader, key, service.spec), None),
        parts.have("fetch", _jobs(reader, key, service.spec), []),
        parts.have("plan", _list(reader, JOB, key, mine, JobView), []),
        parts.have("events", _events(reader, key), []),
    )
    serving = [pod for pod in pods if pod.revision is not None and pod.job is None]
    plan_jobs = _plans(asked, service)
    planned = {job.meta.name for job in plan_jobs}
    plan_pods = [pod for pod in pods if pod.job in planned]
    job_pods = await parts.have("fetch pods", _job_pods(reader, key, jobs), [])
    answers, progress = await asyncio.gather(
        _answers(reader, parts, serving), _progress(reader, job_pods)
    )
    return Seen(
        now=now,
        key=key,
        service=service,
        pods=tuple(serving),
        deployments=tuple(d for d in deployments if service.meta.uid in d.meta.owners),
        claim=claim,
        jobs=tuple(jobs),
        fetch_pods=tuple(job_pods),
        plan_jobs=tuple(plan_jobs),
        plan_pods=tuple(plan_pods),
        events=tuple(
            _about(events, service, [*pods, *job_pods, *jobs, *asked, *deployments, claim])
        ),
        answers=answers,
        progress=progress,
        unseen=tuple(parts.unseen),
    )


async def _service(reader: Reader, key: Key, place: str) -> ServiceView:
    try:
        body = await reader.get(SERVICE_KIND, key.namespace, key.name)
    except NotFound as error:
        if complaints.is_unknown_kind(error, key.name):
            raise complaints.about(error, key.namespace, place) from error
        raise complaints.no_such(key, await _others(reader, key)) from error
    except ApiError as error:
        raise complaints.about(error, key.namespace, place) from error
    view = project(SERVICE_KIND, body)
    assert isinstance(view, ServiceView)
    return view


async def _others(reader: Reader, key: Key) -> list[str] | None:
    try:
        found = await reader.list_objects(SERVICE_KIND, key.namespace, metadata_only=True)
    except ApiError:
        return None  # the sentence goes without them
    return [body["metadata"]["name"] for body in found]


async def _list(reader: Reader, kind: Kind, key: Key, labels: str, view: type[V]) -> list[V]:
    bodies = await reader.list_objects(kind, key.namespace, labels=labels)
    found = [project(kind, body) for body in bodies]
    return [item for item in found if isinstance(item, view)]


async def _claim(reader: Reader, key: Key, spec: api.Spec | None) -> ClaimView | None:
    name = claim_name(spec)
    if name is None:
        return None
    view = project(CLAIM, await reader.get(CLAIM, key.namespace, name))
    assert isinstance(view, ClaimView)
    return view


async def _jobs(reader: Reader, key: Key, spec: api.Spec | None) -> list[JobView]:
    """Fetches to the claim, whichever of the services that share it asked for them."""
    name = claim_name(spec)
    if spec is None or name is None:
        return []
    stem = names.fetch_stem(name, content_of(spec))
    jobs = await _list(reader, JOB, key, f"{names.LABEL_CLAIM}={stem}", JobView)
    return sorted(jobs, key=lambda job: job.attempt)


def _plans(jobs: list[JobView], service: ServiceView) -> list[JobView]:
    """Those that ask for the memory plan; fetches are of a claim, whoever asked for them."""
    ours = [job for job in jobs if job.plan is not None and service.meta.uid in job.meta.owners]
    return sorted(ours, key=lambda job: (job.meta.created, job.attempt))


async def _job_pods(reader: Reader, key: Key, jobs: list[JobView]) -> list[PodView]:
    if not jobs:
        return []
    pods = await _list(reader, POD, key, f"{names.LABEL_CLAIM}={jobs[-1].claim}", PodView)
    return [pod for pod in pods if pod.job == jobs[-1].meta.name]


async def _events(reader: Reader, key: Key) -> list[EventView]:
    """Of the service, and every Warning of its namespace: which are of its children shows later."""
    own = f"involvedObject.kind={api.KIND},involvedObject.name={key.name}"
    told, warnings = await asyncio.gather(
        reader.list_objects(EVENT, key.namespace, fields=own),
        reader.list_objects(EVENT, key.namespace, fields="type=Warning"),
    )
    found = {body["metadata"]["name"]: event_of(body) for body in [*told, *warnings]}
    return list(found.values())


_Child = PodView | JobView | DeploymentView | ClaimView


def _about(
    events: list[EventView], service: ServiceView, children: Iterable[_Child | None]
) -> list[EventView]:
    uids = {service.meta.uid} | {child.meta.uid for child in children if child is not None}
    return [event for event in events if event.uid in uids]


async def _answers(
    reader: Reader, parts: _Parts, pods: list[PodView]
) -> dict[str, PodMetrics | Missing]:
    running = [pod for pod in pods if is_asked(pod)]
    keys = [Key(pod.meta.namespace, pod.meta.name) for pod in running]
    found = await asyncio.gather(*(metrics_of(reader, key, PAGE_SECONDS) for key in keys))
    refused = [answer for answer in found if isinstance(answer, Refused)]
    if refused:
        parts.unseen.append(("load", refused[0].why))
    return {key.name: answer for key, answer in zip(keys, found, strict=True)}


def is_asked(pod: PodView) -> bool:
    """Whether its engine may answer: it runs, ready or not."""
    return pod.main is not None and pod.main.running and not pod.ended


class Refused(Missing):
    """Nobody of this user's rights is answered: one note for all pods is enough."""


async def page_of(
    reader: Reader, pod: Key, port: int, path: str, seconds: float
) -> bytes | Missing:
    """A pod's page through the API server's proxy, within the deadline, or why there is none."""
    try:
        return await asyncio.wait_for(reader.page(pod, port, path, seconds), seconds)
    except Denied as error:
        return Refused(f"forbidden (get on pods/proxy, which the role `edit` has): {error.message}")
    except TimeoutError:
        return Missing(f"did not answer within {seconds:g} s")
    except ApiError as error:
        if error.status == 0:
            return Missing(f"did not answer within {seconds:g} s")
        return Missing(f"gave no page: {error.status} {error.message}".rstrip())


async def metrics_of(reader: Reader, pod: Key, seconds: float) -> PodMetrics | Missing:
    """What a pod's /metrics says."""
    page = await page_of(reader, pod, names.ENGINE_PORT, "/metrics", seconds)
    return page if isinstance(page, Missing) else parse(page)


async def _progress(reader: Reader, pods: list[PodView]) -> Progress | None:
    """What the fetch says of itself; the status has it too, some seconds older."""
    for pod in pods:
        if is_asked(pod):
            key = Key(pod.meta.namespace, pod.meta.name)
            page = await page_of(reader, key, names.PROGRESS_PORT, "/progress", PAGE_SECONDS)
            return None if isinstance(page, Missing) else parse_progress(page)
    return None
