"""Is the core alive? Told from a counter that moves with every layer, never from a request's time.

A core is taken for hung when work is pending and its counter has stood still for `health_timeout`
seconds. One long prefill moves the counter with every layer; an idle core has nothing pending.
While the model loads, the counter moves with every tensor, but not inside an import or a kernel's
compilation: there LOAD_FACTOR times as long is granted, for killing a slow start begins a slower
one.

/health ends a process, so its limit is long; /ready only sends requests elsewhere and tells people,
so a core that serves has a shorter one there (`stands_still`).
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
    is_loading: bool = False

    def stands_still(self, limit: float) -> bool:
        """Whether requests had better go elsewhere: it is not healthy, or serves and has not moved
        for `limit` seconds."""
        return not self.healthy or (not self.is_loading and self.stalled_seconds > limit)

    @property
    def standstill(self) -> str:
        """In words."""
        seconds = f"{self.stalled_seconds:.0f} s"
        if self.is_loading:
            return f"nothing of the model has been loaded for {seconds}"
        return f"no layer has run for {seconds} with work pending"


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
            return self._judge(
                now - self._moved, self._timeout * LOAD_FACTOR, "Loading", is_loading=True
            )
        if pending_since is None and not progress.pending:
            return HealthReport(True, "Idle")
        # Beginning work moves the counter: what the core itself holds is as old as the last move.
        # What only the API has sent is not, for the core may have been idle since.
        since = self._moved
        if pending_since is not None and not progress.pending:
            since = max(since, pending_since)
        return self._judge(now - since, self._timeout, "Working")

    def _judge(
        self, stalled: float, limit: float, otherwise: str, *, is_loading: bool = False
    ) -> HealthReport:
        if stalled > limit:
            return HealthReport(False, "Stalled", stalled, is_loading)
        return HealthReport(True, otherwise, stalled, is_loading)
