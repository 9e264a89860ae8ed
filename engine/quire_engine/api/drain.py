"""Going down without losing an accepted request.

First signal: /ready and new requests answer 503, those in flight finish within `shutdown_timeout`,
what is left then is aborted with an error. Second signal: what is left is aborted at once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quire_engine.api.errors import ApiError, Unavailable

logger = logging.getLogger(__name__)

LAST_BYTES_SECONDS = 5.0
"""For error events to be written to clients that read, after their sequences were aborted."""


class Drain:
    """Counts the requests in flight, and waits for them when it is time to go."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._signals = 0
        self._begun = asyncio.Event()
        self._hurry = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.num_in_flight = 0

    @property
    def draining(self) -> bool:
        """Whether new requests are to be turned away."""
        return self._begun.is_set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request's whole life. Unavailable while draining."""
        if self.draining:
            raise Unavailable(
                "the server is shutting down; send the request again, another replica will take it",
                code="shutting_down",
                retry_after=1,
                close=True,
            )
        self.num_in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            if self.num_in_flight == 0:
                self._empty.set()

    def signal(self) -> None:
        """SIGTERM or SIGINT came."""
        self._signals += 1
        if self._signals == 1:
            logger.info("draining in_flight=%d timeout=%g", self.num_in_flight, self._timeout)
            self._begun.set()
        else:
            logger.info("asked again, aborting in_flight=%d", self.num_in_flight)
            self._hurry.set()

    async def until_empty(self) -> None:
        """Returns when no request is in flight."""
        await self._empty.wait()

    async def run(self, fail_all: Callable[[ApiError], int]) -> int:
        """Wait for the first signal, then for the requests. How many sequences were aborted."""
        await self._begun.wait()
        await self._first_of(self._empty, self._hurry, seconds=self._timeout)
        if self._empty.is_set():
            logger.info("drained aborted=0")
            return 0
        count = fail_all(
            Unavailable(
                "the server shut down before this answer was complete; send the request again",
                code="shutting_down",
                close=True,
            )
        )
        await self._first_of(self._empty, seconds=LAST_BYTES_SECONDS)
        logger.warning("drained aborted=%d unanswered=%d", count, self.num_in_flight)
        return count

    async def _first_of(self, *events: asyncio.Event, seconds: float) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
