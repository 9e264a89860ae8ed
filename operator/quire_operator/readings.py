"""What each service's pods said last, for those who ask the operator: HPA and KEDA.

The scaling loop writes one reading per service and round, on every replica of the operator; the
external metrics API and the KEDA scaler read. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from quire_operator.names import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One round's numbers of one service; None where a number is not known."""

    at: float
    """Seconds on the monotonic clock."""
    wall: float
    """The same moment as epoch seconds."""
    ready: int
    complete: bool
    """Every ready pod answered with every metric that a target wants. A reading that is not must
    never be passed on as a number: an autoscaler would take it for less load."""
    loads_complete: bool = False
    """The same but for the time to the first token, which nobody knows while requests wait and none
    gets a token: by the queue an autoscaler may grow then, and it does not shrink on an error."""
    missing: tuple[str, ...] = ()
    """One sentence for each pod that gave nothing."""
    waiting: float | None = None
    """Requests that wait, summed over the pods."""
    running: float | None = None
    kv_cache_utilization: float | None = None
    """Mean over the pods, 0 to 1."""
    ttft_p95_seconds: float | None = None
    idle: bool | None = None
    """No request runs, waits, is held or came since the round before; None when not known."""
    idle_since: float | None = None
    """Seconds on the monotonic clock since when, without a gap, every round was complete and found
    nothing running, nothing waiting and no request arrived. None: not idle, or not known to be.
    `Readings` finds it."""


class Readings:
    """The last reading of each service. `gap_seconds`: two readings that lie further apart leave
    open what happened between them."""

    def __init__(self, gap_seconds: float = 15.0) -> None:
        self._gap_seconds = gap_seconds
        self._latest: dict[Key, Reading] = {}

    def put(self, key: Key, reading: Reading) -> None:
        since = self._idle_since(self._latest.get(key), reading)
        self._latest[key] = replace(reading, idle_since=since)

    def _idle_since(self, before: Reading | None, now: Reading) -> float | None:
        if not now.idle or not now.complete:
            return None
        if before is None or before.idle_since is None or now.at - before.at > self._gap_seconds:
            return now.at
        return before.idle_since

    def get(self, key: Key) -> Reading | None:
        return self._latest.get(key)

    def forget(self, key: Key) -> None:
        self._latest.pop(key, None)
