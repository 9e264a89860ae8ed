"""Is the core alive? Told from a counter that moves with every layer, never from a request's time.

A core is taken for hung when work is pending and its counter has stood still for `health_timeout`
seconds. One long prefill moves the counter with every layer; an idle core has nothing pending.
While the model loads, the counter moves with every tensor, but not inside an import or a kernel's
compilation: there LOAD_FACTOR times as long is granted, for killing a slow start begins a slower
one.
"""

from dataclasses import dataclass

from quire_engine.progress import Progress

LOAD_FACTOR = 5


@dataclass(frozen=True)
class HealthReport:
    """What /health answers."""

    healthy: bool
    reason: str  # CamelCase
    stalled_seconds: float = 0.0


class HealthMonitor:
    """Looks at the counter when asked, and remembers when it was last seen to move."""

    def __init__(self, timeout: float, *, now: float) -> None:
        self._timeout = timeout
        self._counter = -1
        self._moved = now

    def check(
        self,
        progress: Progress,
        *,
        now: float,
        alive: bool,
        loading: bool,
        pending_since: float | None,
    ) -> HealthReport:
        """Times are monotonic seconds; `pending_since`: when the API last became busy."""
        if progress.counter != self._counter:
            self._counter, self._moved = progress.counter, now
        if not alive:
            return HealthReport(False, "CoreDied")
        if loading:
            return self._judge(now - self._moved, self._timeout * LOAD_FACTOR, "Loading")
        if pending_since is None and not progress.pending:
            return HealthReport(True, "Idle")
        # Beginning work moves the counter: what the core itself holds is as old as the last move.
        # What only the API has sent is not, for the core may have been idle since.
        since = self._moved
        if pending_since is not None and not progress.pending:
            since = max(since, pending_since)
        return self._judge(now - since, self._timeout, "Working")

    def _judge(self, stalled: float, limit: float, otherwise: str) -> HealthReport:
        if stalled > limit:
            return HealthReport(False, "Stalled", stalled)
        return HealthReport(True, otherwise, stalled)
