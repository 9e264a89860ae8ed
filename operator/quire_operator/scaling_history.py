"""What the scaler remembers of one service between rounds. Pure: time comes in as seconds.

A `History` starts empty with the operator, on purpose: a scaler that knows nothing of the last five
minutes must not conclude that they were quiet, so every window starts anew with the process.
"""

from dataclasses import dataclass

Need = tuple[float, int]  # (seconds on the caller's clock, replicas needed then)


@dataclass(frozen=True, slots=True)
class Round:
    """One round's facts, as far as later rounds need them.

    replicas: spec.replicas after this round's decision; ready: pods that serve; need: the fewest
    replicas that keep the load inside the targets, None when no pod answered; complete: every ready
    pod gave every metric that a target wants; idle: no request anywhere, None when that is not
    known; changed: this round's decision moved replicas.
    """

    time: float
    replicas: int
    ready: int
    need: int | None
    complete: bool
    idle: bool | None
    changed: bool


@dataclass(frozen=True, slots=True)
class Windows:
    """How far back rounds matter, in seconds. `gap`: the longest silence that is no gap yet."""

    up: float
    down: float
    gap: float


@dataclass(frozen=True, slots=True)
class History:
    """Sliding windows over past rounds, kept as the few rounds that can still matter.

    `peaks` falls in need and `troughs` rises: once the rounds that left the window are cut, the
    head is the window's maximum or minimum. A steady service keeps one entry in each.
    """

    seen_since: float | None = None  # no gap in metrics of any kind since then
    seen_last: float | None = None
    complete_since: float | None = None  # no gap in complete metrics since then
    complete_last: float | None = None
    idle_since: float | None = None  # no request and no gap in knowing so since then
    idle_last: float | None = None
    changed_last: float | None = None
    ready_grew: float | None = None  # when a pod last joined others that already served
    replicas: int | None = None
    ready: int | None = None
    peaks: tuple[Need, ...] = ()
    troughs: tuple[Need, ...] = ()

    def seen_seconds(self, now: float, gap: float) -> float:
        """For how long metrics of any kind have come without a gap; 0 for not at all."""
        return _lasting(self.seen_since, self.seen_last, now, gap)

    def complete_seconds(self, now: float, gap: float) -> float:
        """The same for complete metrics."""
        return _lasting(self.complete_since, self.complete_last, now, gap)

    def idle_seconds(self, now: float, gap: float) -> float:
        """For how long there has been no request, all of it known."""
        return _lasting(self.idle_since, self.idle_last, now, gap)

    def highest_need(self, now: float, window: float, need: int) -> int:
        """The largest need within the window, this round's included."""
        return max([need, *(past for time, past in self.peaks if time >= now - window)])

    def lowest_need(self, now: float, window: float, need: int) -> int:
        """The smallest need within the window, this round's included."""
        return min([need, *(past for time, past in self.troughs if time >= now - window)])

    def after(self, this: Round, windows: Windows) -> "History":
        """The history once `this` round is over."""
        moved_by_another = (
            self.replicas is not None and not this.changed and (this.replicas != self.replicas)
        )
        seen = this.need is not None
        seen_since = _since(self.seen_since, self.seen_last, this.time, seen, windows.gap)
        complete_since = _since(
            self.complete_since, self.complete_last, this.time, this.complete, windows.gap
        )
        idle_since, idle_last = self._idle_after(this, windows.gap)
        if moved_by_another:  # someone else's word holds for a window, as ours does
            complete_since = None if complete_since is None else this.time
            idle_since = None if idle_since is None else this.time
        return History(
            seen_since=seen_since,
            seen_last=this.time if seen else self.seen_last,
            complete_since=complete_since,
            complete_last=this.time if this.complete else self.complete_last,
            idle_since=idle_since,
            idle_last=idle_last,
            changed_last=this.time if this.changed else self.changed_last,
            ready_grew=this.time if _grew(self.ready, this.ready) else self.ready_grew,
            replicas=this.replicas,
            ready=this.ready,
            peaks=self._peaks_with(this, windows),
            troughs=self._troughs_with(this, windows),
        )

    def _idle_after(self, this: Round, gap: float) -> tuple[float | None, float | None]:
        """A request ends the idle time at once, a lost scrape only when it lasts: requests that
        came meanwhile show in the counters of the next one."""
        if this.idle is False:
            return None, None
        since = _since(self.idle_since, self.idle_last, this.time, this.idle is True, gap)
        return since, this.time if this.idle else self.idle_last

    def _peaks_with(self, this: Round, windows: Windows) -> tuple[Need, ...]:
        kept = tuple(peak for peak in self.peaks if peak[0] >= this.time - windows.down)
        if this.need is None:
            return kept
        need = this.need
        return (*(peak for peak in kept if peak[1] > need), (this.time, need))

    def _troughs_with(self, this: Round, windows: Windows) -> tuple[Need, ...]:
        kept = tuple(trough for trough in self.troughs if trough[0] >= this.time - windows.up)
        if this.need is None:
            return kept
        need = this.need
        return (*(trough for trough in kept if trough[1] < need), (this.time, need))


def _since(
    since: float | None, last: float | None, now: float, present: bool, gap: float
) -> float | None:
    """Start of the unbroken run of data that reaches `now`; None while there is none."""
    broken = last is None or now - last > gap
    if present:
        return now if broken or since is None else since
    return None if broken else since


def _lasting(since: float | None, last: float | None, now: float, gap: float) -> float:
    return 0.0 if since is None or last is None or now - last > gap else now - since


def _grew(before: int | None, now: int) -> bool:
    return before is not None and 0 < before < now
