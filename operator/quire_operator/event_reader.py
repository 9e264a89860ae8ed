"""Reads what the cluster tells of objects in trouble: a namespace's Events, for all its services.

An API server keeps no index of Events: a list of one object's reads all of the namespace, so that a
thousand services that start would read all of it a thousand times. They share one list instead,
in pages, which is remembered for some seconds, and for longer where it took long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from quire_operator.client import Api
from quire_operator.errors import ApiError, Denied
from quire_operator.kinds import EVENT, Manifest
from quire_operator.observe import PodEvent
from quire_operator.projections import epoch

logger = logging.getLogger(__name__)

FRESH_SECONDS = 3.0
"""With the 5 s between two looks at a service in trouble well within the 15 s that a reason may be
late."""
REST = 3.0
"""How many times as long as a list took there is none: at most a quarter of the time one runs."""
PAGE_SIZE = 500
"""Events in one answer, of about 1 KiB each: what is held at a time before it is projected."""
MAX_EVENTS = 10_000
"""Kept of one namespace, the newest. What is in trouble tells of it again every few minutes."""
LISTS_AT_ONCE = 4
"""Of different namespaces, so that they leave the connections to those who reconcile."""
PATIENCE_SECONDS = 5.0
"""That who asks waits for a list; what comes later is found when it is asked for the next time."""
FORGET_SECONDS = 60.0
"""After which a namespace that nobody asks about is forgotten."""
NEVER_ASKED = ("InferenceService", "Deployment", "ReplicaSet")
"""Kinds whose Events nobody asks for: many, in a namespace that starts."""
FIELDS = ",".join(f"involvedObject.kind!={kind}" for kind in NEVER_ASKED)


@dataclass(slots=True)
class _Namespace:
    """What was read of one."""

    listing: asyncio.Task[None] | None = None
    """Runs on when those who wait for it have lost patience."""
    stale_at: float = 0.0
    by_uid: dict[str, tuple[PodEvent, ...]] = field(default_factory=dict)


class EventReader:
    """Owner of the lists. Times are `clock`'s, seconds that only grow."""

    def __init__(self, client: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, _Namespace] = {}
        self._turn = asyncio.Semaphore(LISTS_AT_ONCE)

    async def read(self, namespace: str, uid: str) -> tuple[PodEvent, ...]:
        """Those on one object, the newest first; none where they cannot be read. Where a list takes
        longer than PATIENCE_SECONDS what was known before: an engine's word must not wait for it.
        """
        known = self._known.setdefault(namespace, _Namespace())
        if known.listing is None and self._clock() >= known.stale_at:
            known.listing = asyncio.create_task(self._list(namespace, known))
        if known.listing is not None:  # who comes while a list runs waits for that one
            done, _ = await asyncio.wait({known.listing}, timeout=PATIENCE_SECONDS)
            for ended in done:
                ended.result()
        return known.by_uid.get(uid, ())

    async def _list(self, namespace: str, known: _Namespace) -> None:
        try:
            async with self._turn:
                await self._read_all(namespace, known)
        finally:
            known.listing = None

    async def _read_all(self, namespace: str, known: _Namespace) -> None:
        began = self._clock()
        self._forget(began)
        try:
            known.by_uid = await self._by_uid(namespace)
        except Denied as e:
            logger.warning("[%s] events may not be read: %s", namespace, e)
            known.by_uid = {}
        except ApiError as e:  # what was known is better than nothing
            logger.warning("[%s] events not read: %s", namespace, e)
        now = self._clock()
        known.stale_at = now + max(FRESH_SECONDS, REST * (now - began))

    async def _by_uid(self, namespace: str) -> dict[str, tuple[PodEvent, ...]]:
        found: list[tuple[str, PodEvent]] = []
        async for page in self._client.list_pages(EVENT, namespace, fields=FIELDS, size=PAGE_SIZE):
            found += [(_uid(body), _event(body)) for body in page]
            if len(found) > MAX_EVENTS + PAGE_SIZE:
                found = _newest(found)
        by_uid: defaultdict[str, list[PodEvent]] = defaultdict(list)
        for uid, event in _newest(found):
            by_uid[uid].append(event)
        return {uid: tuple(events) for uid, events in by_uid.items()}

    def _forget(self, now: float) -> None:
        for namespace, known in list(self._known.items()):
            if known.listing is None and known.stale_at + FORGET_SECONDS < now:
                del self._known[namespace]


def _newest(found: list[tuple[str, PodEvent]]) -> list[tuple[str, PodEvent]]:
    """Of one second the warnings first: the scheduler tells of its microseconds, the kubelet does
    not, whose word on a pod would seem older than that the pod was given to it."""

    def age(entry: tuple[str, PodEvent]) -> tuple[int, bool]:
        event = entry[1]
        return -int(event.at), not event.is_warning

    return sorted(found, key=age)[:MAX_EVENTS]


def _uid(body: Manifest) -> str:
    return str((body.get("involvedObject") or {}).get("uid", ""))


def _event(body: Manifest) -> PodEvent:
    told = body.get("lastTimestamp") or body.get("eventTime")
    again = (body.get("series") or {}).get("lastObservedTime")
    return PodEvent(
        reason=str(body.get("reason", "")),
        message=str(body.get("message", "")),
        is_warning=body.get("type") == "Warning",
        at=epoch(again or told) or 0.0,
    )
