"""ScaledObjects, listed now and then: a watch of a kind that KEDA may not have installed ends kopf,
and one that is begun before KEDA comes never sees it.

One list a period for all services, and none at all while nobody wants or has one (but for a look
every two minutes). What is on its way out is looked at by the reconcile that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from quire_operator import names
from quire_operator.client import Api
from quire_operator.errors import ApiError, Denied, NotFound
from quire_operator.kinds import SCALED_OBJECT
from quire_operator.names import Key
from quire_operator.projections import project
from quire_operator.world import World

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 10.0
IDLE_PERIODS = 12

MISSING = (
    "KEDA is not installed (the API server knows no scaledobjects.keda.sh): install KEDA 2.x, or "
    "set scaling.mode to builtin or hpa"
)
DENIED = (
    "the operator may not list scaledobjects.keda.sh: grant it the rights of the chart's role, or "
    "set scaling.mode to builtin or hpa"
)


class ScaledObjectPoller:
    """Owner of what the world knows of ScaledObjects, and of whether there is a KEDA."""

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

    async def run(self) -> None:
        """Polls until cancelled."""
        while True:
            for _ in range(IDLE_PERIODS):
                await self._sleep(PERIOD_SECONDS)
                if self._is_wanted():
                    break
            try:
                await self.poll()
            except ApiError as e:
                logger.warning("ScaledObjects not listed: %s", e)

    async def poll(self) -> None:
        """One look. Raises ApiError for an API server that does not answer: what is known stands,
        and at the start nothing is known, a ScaledObject that still scales among it."""
        found: set[Key] = set()
        try:
            for namespace in self._namespaces:
                found |= await self._list(namespace)
        except (NotFound, Denied) as e:
            self._world.set_keda_trouble(MISSING if isinstance(e, NotFound) else DENIED)
            if isinstance(e, NotFound):
                self._forget_all_but(set())
            return
        self._world.set_keda_trouble(None)
        self._forget_all_but(found)

    async def _list(self, namespace: str | None) -> set[Key]:
        kind, found = SCALED_OBJECT, set()
        for body in await self._client.list_objects(kind, namespace, labels=names.SELECTOR):
            self._world.put(kind, project(kind, body))
            found.add(Key(body["metadata"]["namespace"], body["metadata"]["name"]))
        return found

    def _forget_all_but(self, found: set[Key]) -> None:
        for at in self._world.all(SCALED_OBJECT).keys() - found:
            self._world.drop(SCALED_OBJECT, at)

    def _is_wanted(self) -> bool:
        if self._world.all(SCALED_OBJECT):
            return True
        services = (self._world.service(key) for key in self._world.keys())  # noqa: SIM118
        specs = (service.spec for service in services if service is not None)
        return any(spec is not None and spec.scaling.mode == "keda" for spec in specs)
