"""Whether somebody holds requests for a service: its activation Lease. No I/O, no clock.

The Lease is written by another process on another machine, so its renewTime cannot be compared
with our clock without care. A renewal that we saw happen counts from when we saw it, whatever time
it bears. Only a Lease that we find (after a start, say) is taken at its word, and never for newer
than now. So a writer whose clock is ahead keeps nothing awake for longer than the Lease lasts, and
one whose clock is behind wakes a service with its second write.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator.views import LeaseView


@dataclass(frozen=True, slots=True)
class Sighting:
    """What we know of one Lease. Times are epoch seconds."""

    uid: str
    renewed: float | None
    """By the writer's clock; None for one that was never renewed."""
    counts_from: float
    """By ours."""
    lasts_seconds: float
    held: bool

    def is_fresh(self, now: float) -> bool:
        return self.seconds_left(now) > 0

    def seconds_left(self, now: float) -> float:
        """Until it has run out; 0 for one that nobody holds."""
        left = self.counts_from + self.lasts_seconds - now
        return max(0.0, left) if self.held else 0.0


def sight(before: Sighting | None, lease: LeaseView, now: float) -> Sighting:
    """The sighting of a Lease that was just told of, after the one before."""
    return Sighting(
        uid=lease.meta.uid,
        renewed=lease.renewed,
        counts_from=_counts_from(before, lease, now),
        lasts_seconds=lease.duration_seconds,
        held=bool(lease.holder) and lease.renewed is not None,
    )


def _counts_from(before: Sighting | None, lease: LeaseView, now: float) -> float:
    if before is None or before.uid != lease.meta.uid:
        return now if lease.renewed is None else min(lease.renewed, now)
    return before.counts_from if before.renewed == lease.renewed else now
