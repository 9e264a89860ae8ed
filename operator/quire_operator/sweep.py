"""Fills the world from lists before anything is decided, then compares it every few minutes.

A plan over half a world makes a second Deployment, or deletes a claim that is in use. kopf restarts
a watch that is silent for 70 s, but what was deleted while a watch was down is never told. A sweep
forgets what is gone and learns what was missed. Missing the same thing in two sweeps running means
a watch that is connected and tells nothing: `is_stale`, and the liveness probe fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from quire_operator import names
from quire_operator.client import Api
from quire_operator.errors import ApiError, NotFound
from quire_operator.kinds import CHILDREN, SERVICE_KIND, Kind, Manifest
from quire_operator.names import Key
from quire_operator.projections import project
from quire_operator.world import World

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 120.0
PAGE_SIZE = 250
"""Whole objects in one answer: a pod is 30 KiB of JSON, and a multiple of that once it is parsed;
the process keeps what a start took at once."""
GRACE_SECONDS = 10.0
"""What a watch may be late by before it counts as having missed something."""


class Sweeper:
    """Owner of the knowledge of which kinds' watches lag."""

    def __init__(
        self,
        client: Api,
        world: World,
        namespaces: tuple[str, ...],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._world = world
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._sleep = sleep
        self._missed: dict[Kind, int] = {}

    @property
    def is_stale(self) -> bool:
        """Whether some watch has missed events in two sweeps running."""
        return any(count >= 2 for count in self._missed.values())

    async def fill(self) -> None:
        """Learns all there is, the services last: they are then woken once. Raises ApiError."""
        for kind in (*CHILDREN, SERVICE_KIND):
            for namespace in self._namespaces:
                labels = _selector(kind)
                pages = self._client.list_pages(kind, namespace, labels=labels, size=PAGE_SIZE)
                async for page in pages:
                    for body in page:
                        self._take(kind, body)

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            await self._sleep(PERIOD_SECONDS)
            for kind in (SERVICE_KIND, *CHILDREN):
                try:
                    await self.sweep(kind)
                except ApiError as e:
                    logger.warning("sweep of %s failed: %s", kind.plural, e)

    async def sweep(self, kind: Kind) -> int:
        """Compares one kind; returns how many objects the watch had missed or not forgotten."""
        suspects = await self._differences(kind)
        if suspects:
            await self._sleep(GRACE_SECONDS)
            again = await self._differences(kind)
            suspects = {at: version for at, version in suspects.items() if again.get(at) == version}
        missed = sum([await self._learn(kind, at) for at in suspects])
        if missed:
            logger.warning("the watch of %s missed %d objects", kind.plural, missed)
        self._missed[kind] = self._missed.get(kind, 0) + 1 if missed else 0
        return missed

    async def _differences(self, kind: Kind) -> dict[Key, str]:
        """Objects whose version the world has not, and those that are gone (version "")."""
        listed: dict[Key, str] = {}
        for namespace in self._namespaces:
            items = await self._client.list_objects(
                kind, namespace, labels=_selector(kind), metadata_only=True
            )
            listed |= {_at(item): item["metadata"]["resourceVersion"] for item in items}
        known = {at: view.meta.resource_version for at, view in self._world.all(kind).items()}
        foreign = {at for at in known if at not in listed and not self._is_watched(kind, at)}
        differing = {at: version for at, version in listed.items() if known.get(at) != version}
        return differing | {at: "" for at in known if at not in listed and at not in foreign}

    def _is_watched(self, kind: Kind, at: Key) -> bool:
        """Claims of the users' are in the world without a watch."""
        claim = self._world.claim(at) if kind.plural == "persistentvolumeclaims" else None
        return claim is None or claim.managed

    async def _learn(self, kind: Kind, at: Key) -> bool:
        """Takes one object as it is now. True if the watch should have told of it."""
        try:
            body = await self._client.get(kind, at.namespace, at.name)
        except NotFound:
            self._world.drop(kind, at)
            return True
        except ApiError as e:
            logger.warning("[%s] %s not read: %s", at, kind.kind, e)
            return False
        # One that has lost our label is known by its name only: no watch tells of it.
        return self._take(kind, body) and _is_selected(kind, body)

    def _take(self, kind: Kind, body: Manifest) -> bool:
        """Into the world. What cannot be read is logged: it must not hide all the others."""
        try:
            self._world.put(kind, project(kind, body))
        except Exception:
            logger.exception("[%s] %s not understood", _at(body), kind.kind)
            return False
        return True


def _selector(kind: Kind) -> str:
    return "" if kind is SERVICE_KIND else names.SELECTOR


def _is_selected(kind: Kind, body: Manifest) -> bool:
    labels = body["metadata"].get("labels") or {}
    return kind is SERVICE_KIND or labels.get(names.MANAGED_BY) == names.MANAGED_BY_VALUE


def _at(item: Manifest) -> Key:
    return Key(item["metadata"]["namespace"], item["metadata"]["name"])
