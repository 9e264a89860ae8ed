"""Where the gateway is: the ready pods behind its Service, asked for every second.

A poll and no watch: kopf takes one label selector for a kind, and ours is that of our own children;
and the gateway lies in the operator's namespace, which may be none of the watched ones. One small
list a second is nothing to an API server, and cannot fall silent unnoticed as a watch can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from quire_operator import names
from quire_operator.client import Api
from quire_operator.errors import ApiError
from quire_operator.kinds import SLICE
from quire_operator.projections import gateway_of
from quire_operator.views import Gateway

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0


class GatewayPoll:
    """Tells what it finds, changed or not (`World.set_gateway` knows the difference)."""

    def __init__(
        self,
        client: Api,
        namespace: str,
        service: str,
        tell: Callable[[Gateway], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._service = service
        self._tell = tell
        self._sleep = sleep
        self._failing = False

    async def look(self) -> None:
        """Once. A Service that does not exist has no pods. Raises ApiError."""
        labels = f"{names.SLICE_SERVICE}={self._service}"
        slices = await self._client.list_objects(SLICE, self._namespace, labels=labels)
        self._tell(gateway_of(slices))

    async def run(self) -> None:
        """Until cancelled. While the API server does not answer, the last answer stands."""
        while True:
            await self._sleep(PERIOD_SECONDS)
            try:
                await self.look()
            except ApiError as e:
                self._note(failing=True, words=f": {e}")
            else:
                self._note(failing=False, words=" again")

    def _note(self, *, failing: bool, words: str) -> None:
        """Once for each turn, not each second."""
        if failing != self._failing:
            self._failing = failing
            state = "not read" if failing else "read"
            logger.warning("the gateway's endpoints (%s) are %s%s", self._service, state, words)
