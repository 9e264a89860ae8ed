"""One round of `top`: the services, their pods, and each ready pod's page, all by way of the API
server, as a user has no route to pods."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from quire_operator import names
from quire_operator.console import complaints
from quire_operator.console.meter import Answers, Figures, Meter, Page
from quire_operator.console.reading import Reader, Refused, page_of
from quire_operator.errors import ApiError, Denied
from quire_operator.kinds import POD, SERVICE_KIND
from quire_operator.names import Key
from quire_operator.projections import project
from quire_operator.reasons import READY
from quire_operator.scraper import GENERATED, Missing, parse, total
from quire_operator.views import PodView, ServiceView

PAGE_SECONDS = 2.0
CONCURRENCY = 32
"""Requests that the API server is asked to pass on at a time; it answers others meanwhile."""
SELECTOR = f"{names.APP_NAME}={names.APP_NAME_VALUE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One service in one round. `wanted` is None where its spec does not decode."""

    key: Key
    status: str
    reason: str
    ready: int
    wanted: int | None
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All lines of one moment, and what could not be seen, each once."""

    lines: tuple[Line, ...]
    unseen: tuple[str, ...]


class Sampler:
    """Asks round after round, and remembers what rates need."""

    def __init__(self, reader: Reader, namespace: str | None, place: str) -> None:
        self._reader = reader
        self._namespace = namespace
        self._place = place
        self._meter = Meter()
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def round(self, now: float) -> Round:
        """Raises ConsoleError when the services cannot be listed."""
        unseen: list[str] = []
        services, pods = await asyncio.gather(self._services(), self._pods(unseen))
        ready = None if pods is None else _ready(pods)
        found = await self._answers([pod for of in (ready or {}).values() for pod in of])
        unseen += _refusal(found)
        answers = {pod: a for pod, a in found.items() if not isinstance(a, Refused)}
        self._meter.hear(now, answers)
        lines = [self._line(service, ready, answers) for service in services]
        return Round(lines=tuple(lines), unseen=tuple(unseen))

    async def _services(self) -> list[ServiceView]:
        try:
            bodies = await self._reader.list_objects(SERVICE_KIND, self._namespace)
        except ApiError as error:
            raise complaints.about(error, self._namespace, self._place) from error
        found = [project(SERVICE_KIND, body) for body in bodies]
        return [view for view in found if isinstance(view, ServiceView)]

    async def _pods(self, unseen: list[str]) -> list[PodView] | None:
        """None where they cannot be listed."""
        try:
            bodies = await self._reader.list_objects(POD, self._namespace, labels=SELECTOR)
        except Denied as error:
            unseen.append(f"pods, and so no load: forbidden: {error.message}")
            return None
        except ApiError as error:
            unseen.append(f"pods, and so no load: {error}")
            return None
        found = [project(POD, body) for body in bodies]
        return [view for view in found if isinstance(view, PodView) and view.job is None]

    async def _answers(self, pods: list[Key]) -> Answers:
        found = await asyncio.gather(*(self._page(pod) for pod in pods))
        return dict(zip(pods, found, strict=True))

    async def _page(self, pod: Key) -> Page | Missing:
        async with self._slots:
            page = await page_of(self._reader, pod, names.ENGINE_PORT, "/metrics", PAGE_SECONDS)
        if isinstance(page, Missing):
            return page
        metrics = parse(page)
        return metrics if isinstance(metrics, Missing) else Page(metrics, total(page, GENERATED))

    def _line(self, service: ServiceView, ready: _ByService | None, answers: Answers) -> Line:
        key = Key(service.meta.namespace, service.meta.name)
        mine, status = (ready or {}).get(key, []), service.status
        said = next((c for c in status.conditions if c.type == READY), None)
        return Line(
            key=key,
            status=said.status if said else "Unknown",
            reason=said.reason if said else "NoStatus",
            # Who may not list pods has the operator's count.
            ready=status.ready_replicas or 0 if ready is None else len(mine),
            wanted=service.spec.replicas if service.spec else None,
            figures=self._meter.figures(answers, mine),
        )


_ByService = dict[Key, list[Key]]


def _ready(pods: list[PodView]) -> _ByService:
    """The ready pods of each service."""
    found: _ByService = {}
    for pod in pods:
        if pod.ready and not pod.meta.deleting:
            service = Key(pod.meta.namespace, pod.meta.service or "")
            found.setdefault(service, []).append(Key(pod.meta.namespace, pod.meta.name))
    return found


def _refusal(answers: Answers) -> list[str]:
    """Said once, not for each pod."""
    refused = [answer for answer in answers.values() if isinstance(answer, Refused)]
    return [f"load: {refused[0].why}"] if refused else []
