"""The work queue: keys to reconcile, each at most once at a time, with a backoff of its own.

A key that is woken while it is worked on runs once more afterwards. Failures double the key's delay
from `FIRST_SECONDS` to `LONGEST_SECONDS`; a success forgets them. Times are the event loop's.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable

from quire_operator.names import Key

logger = logging.getLogger(__name__)

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 60.0

Work = Callable[[Key], Awaitable[float | None]]
"""Reconciles one key; returns the seconds until it wants to be woken again, if it does."""


class WorkQueue:
    """Owner of what waits. `add` is called from the event loop only."""

    def __init__(self) -> None:
        self._ready: dict[Key, None] = {}
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._due: dict[Key, float] = {}
        self._timers: list[tuple[float, Key]] = []
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait to run now."""
        return len(self._ready) + len(self._again)

    def add(self, key: Key) -> None:
        """Runs the key as soon as a worker is free; sooner than any delay that it waits out."""
        self._due.pop(key, None)
        if key in self._running:
            self._again.add(key)
        else:
            self._ready[key] = None
            self._changed.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Runs the key after a delay, unless it is to run sooner anyway."""
        at = _now() + seconds
        if key in self._ready or self._due.get(key, at + 1.0) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._timers, (at, key))
        self._changed.set()

    def failures(self, key: Key) -> int:
        """Failures in a row."""
        return self._failures.get(key, 0)

    async def work(self, reconcile: Work) -> None:
        """One worker: takes keys and reconciles them until it is cancelled.

        Any exception but a cancellation counts as the key's failure and is logged.
        """
        while True:
            key = await self._take()
            delay: float | None = None
            try:
                delay = await reconcile(key)
                self._failures.pop(key, None)
            except Exception as e:
                delay = self._failed(key, e)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                if self._failures.get(key) and delay is not None:
                    self.add_after(key, delay)
                else:
                    self.add(key)
            elif delay is not None:
                self.add_after(key, delay)

    def _failed(self, key: Key, error: Exception) -> float:
        count = self._failures.get(key, 0) + 1
        self._failures[key] = count
        delay = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(count - 1, 16))
        text = f"{type(error).__name__}: {error}"
        logger.warning("[%s] failed %d times, again in %.1f s: %s", key, count, delay, text)
        logger.debug("[%s] where it failed", key, exc_info=error)
        return delay

    async def _take(self) -> Key:
        while True:
            wait = self._promote()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._running.add(key)
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _promote(self) -> float | None:
        """Moves what is due to the ready keys; returns the seconds until the next is due."""
        now = _now()
        while self._timers and (self._timers[0][0] <= now or self._stale(*self._timers[0])):
            at, key = heapq.heappop(self._timers)
            if not self._stale(at, key):
                self.add(key)
        return self._timers[0][0] - now if self._timers else None

    def _stale(self, at: float, key: Key) -> bool:
        return self._due.get(key) != at


def _now() -> float:
    return asyncio.get_running_loop().time()
