"""Asks about services in trouble, beside the reconciles: an engine that hangs keeps whoever asks it
waiting for 1.5 s, and must not keep a worker, and with it everybody's edits.

A reconcile takes the last answers (`told`) and says what it looked at (`consider`); what is worth
asking is asked soon after, and news wake the service.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from quire_operator import inquiry
from quire_operator.engines import EngineSource
from quire_operator.inquiry import Answers, Questions
from quire_operator.names import Key
from quire_operator.observe import Defaults, Observation, PodEvent, Progress, observe
from quire_operator.progress import ProgressSource
from quire_operator.views import PodView
from quire_operator.world import World

logger = logging.getLogger(__name__)

AT_ONCE = 128
"""Services that are asked about at a time, each for 1.5 s at most: of 1,000 whose engines all hang
the last is told within the 15 s that a reason may be late. Each costs a task and four sockets."""
AGAIN_SECONDS = 0.8
"""Between two questions about the same: answers that change each time wake their service, which
asks again. Less than the shortest of the plan's own delays (1 s)."""


class EventSource(Protocol):
    """Where events come from."""

    async def read(self, namespace: str, uid: str) -> tuple[PodEvent, ...]: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Who is asked."""

    events: EventSource
    progress: ProgressSource
    engines: EngineSource

    async def ask(self, asked: Questions, namespace: str, now: float) -> Answers:
        """All at once."""
        progress, events, engines = await asyncio.gather(
            self._progress(asked.fetching, now),
            asyncio.gather(*(self.events.read(namespace, uid) for uid in asked.events)),
            asyncio.gather(*(self.engines.ready(p.meta.uid, p.ip or "") for p in asked.engines)),
        )
        return Answers(
            asked=asked.each,
            progress=progress,
            events=dict(zip(asked.events, events, strict=True)),
            engines={p.meta.uid: said for p, said in zip(asked.engines, engines, strict=True)},
        )

    async def _progress(self, pod: PodView | None, now: float) -> dict[str, Progress]:
        if pod is None:
            return {}
        said = await self.progress.read(pod.meta.uid, pod.ip or "", now)
        return {pod.meta.uid: said} if said is not None else {}


@dataclass(frozen=True, slots=True)
class _Told:
    at: float
    """Epoch seconds: when it was asked."""
    answers: Answers


class Inquirer:
    """Owner of the answers, by service. `wake(key)` is called for a service that has new ones."""

    def __init__(
        self,
        world: World,
        defaults: Defaults,
        sources: Sources,
        wake: Callable[[Key], object],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._world = world
        self._defaults = defaults
        self._sources = sources
        self._wake = wake
        self._wall = wall
        self._told: dict[Key, _Told] = {}
        self._waiting: dict[Key, None] = {}
        self._asking: set[Key] = set()
        self._free = asyncio.Semaphore(AT_ONCE)
        self._changed = asyncio.Event()

    def told(self, key: Key) -> Answers:
        """The last answers."""
        known = self._told.get(key)
        return known.answers if known is not None else inquiry.NOTHING

    def consider(self, seen: Observation) -> bool:
        """Has asked what is worth asking, unless it just was. True where something was never asked
        so far: the answer, on its way, wakes the service."""
        asked = inquiry.questions(seen).each
        if not asked:
            self.forget(seen.key)
            return False
        known = self._told.get(seen.key)
        lacks = known is None or not asked <= known.answers.asked
        if known is None or lacks or not 0 <= seen.now - known.at < AGAIN_SECONDS:
            self._waiting[seen.key] = None
            self._changed.set()
        return lacks

    def forget(self, key: Key) -> None:
        """There is nothing to be asked about it any more."""
        self._told.pop(key, None)
        self._waiting.pop(key, None)

    async def run(self) -> None:
        """Asks until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._free.acquire()
                tasks.create_task(self._one(await self._next()))

    async def drain(self) -> None:
        """Asks what waits, one after the other: for tests."""
        while self._waiting:
            await self._ask(self._waiting.popitem()[0])

    async def _next(self) -> Key:
        while True:
            key = next((key for key in self._waiting if key not in self._asking), None)
            if key is not None:
                del self._waiting[key]
                self._asking.add(key)
                return key
            self._changed.clear()
            await self._changed.wait()

    async def _one(self, key: Key) -> None:
        try:
            await self._ask(key)
        finally:
            self._asking.discard(key)
            self._free.release()
            self._changed.set()

    async def _ask(self, key: Key) -> None:
        """About a service as it is now: it may have waited for some time."""
        seen = self._look(key)
        if seen is None:
            self.forget(key)
            return
        answers = await self._answers(seen)
        service = self._world.service(key)
        if service is None or service.meta.uid != seen.uid:
            return
        before = self._told.get(key)
        self._told[key] = _Told(seen.now, answers)
        if before is None or before.answers != answers:
            self._wake(key)

    async def _answers(self, seen: Observation) -> Answers:
        """Whatever happens, an answer: a status may wait for it."""
        asked = inquiry.questions(seen)
        try:
            return await self._sources.ask(asked, seen.key.namespace, seen.now)
        except Exception:
            logger.exception("[%s] could not be asked about", seen.key)
            return Answers(asked=asked.each)

    def _look(self, key: Key) -> Observation | None:
        service = self._world.service(key)
        if service is None or service.meta.deleting or service.spec is None:
            return None
        return observe(self._world, key, service, service.spec, self._defaults, self._wall())
