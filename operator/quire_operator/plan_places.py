"""Who may ask for a memory plan now: so many plan Jobs at a time in all the cluster, the oldest
service first. By what the API server shows: whoever restarts finds the same line. No clock.

    running plan Jobs + services before this one in the line < places ─► its Job is made
                                                                 else ─► it waits, and says so

A service stands in the line while its condition Fits has the reason PlanQueued.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from quire_operator.names import Key
from quire_operator.views import JobView, ServiceView, View

QUEUED = "PlanQueued"
"""Reason of Fits."""
PLACES = 50
"""Plan Jobs at a time, unless told: a judgement between a mass start's length and pods at once."""
HELD_SECONDS = 60.0
"""For which a Job holds its place at most. One whose pod cannot start (no node, no image) would
hold it for ever, and fifty of them would keep everybody else waiting."""
LOOK_SECONDS = 60.0
"""How often one in the line looks again by itself: the first ones are woken when a place is free,
and when one has left the line."""
NUM_WOKEN = 4
"""Of the line: the first may be unable to move, as his Job is refused."""
RETRY_LOOK_SECONDS = 5.0
"""How often one looks that has failed before: nobody wakes him, and what was mended shows soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a service sees of the others."""

    begun: tuple[float, ...] = ()
    """Epoch seconds: when the others' plan Jobs that have not ended were made."""
    before: int = 0
    """Services in the line that are older."""
    length: int = 0
    """Services in the line, this one not counted."""


ALONE = Line()


@dataclass(frozen=True, slots=True)
class Wait:
    """What has to end before it is one's turn."""

    num_plans: int
    seconds: float
    """Until the next look."""


def wait(line: Line, now: float, places: int, *, again: bool) -> Wait | None:
    """Whether to wait; None where the Job may be made. `again`: a further attempt, after which
    nobody asks before all have had their first."""
    held = [begun for begun in line.begun if now - begun < HELD_SECONDS]
    before = line.length if again else line.before
    # One place is never kept free: who stands first may be unable to move.
    if len(held) + min(before, places - 1) < places:
        return None
    if again:
        return Wait(len(held) + before, RETRY_LOOK_SECONDS)
    if before:
        return Wait(len(held) + before, LOOK_SECONDS)
    return Wait(len(held), max(1.0, min(held) + HELD_SECONDS - now))


class Places:
    """Owner of the line, and of who holds a place, as the world tells of them."""

    def __init__(self) -> None:
        self._line: list[tuple[float, str, Key]] = []
        self._jobs: dict[Key, JobView] = {}

    def learn(self, at: Key, view: View) -> None:
        """Takes what is there now."""
        if isinstance(view, ServiceView) and _takes_part(view):
            insort(self._line, _rank(at, view))
        elif isinstance(view, JobView) and _takes_part(view):
            self._jobs[at] = view

    def forget(self, at: Key, view: View) -> None:
        """Takes that this is gone, or about to be learned anew."""
        if isinstance(view, ServiceView) and _takes_part(view):
            self._line.remove(_rank(at, view))
        elif isinstance(view, JobView):
            self._jobs.pop(at, None)

    def next_after(self, before: View | None, after: View | None) -> list[Key]:
        """Whose turn it may be, as this has left the line, or given its place back: several, as the
        first may be unable to move."""
        left = before is not None and _takes_part(before)
        left = left and not (after is not None and _takes_part(after))
        return [key for _, _, key in self._line[:NUM_WOKEN]] if left else []

    def line(self, key: Key, view: ServiceView) -> Line:
        """What one service sees of the others."""
        rank = _rank(key, view)
        before = bisect_left(self._line, rank)
        stands = self._line[before : before + 1] == [rank]
        others = (job for job in self._jobs.values() if _service(job) != key)
        begun = tuple(job.meta.created for job in others)
        return Line(begun=begun, before=before, length=len(self._line) - stands)


def _rank(at: Key, view: ServiceView) -> tuple[float, str, Key]:
    return (view.meta.created, view.meta.uid, at)


def _service(job: JobView) -> Key:
    return Key(job.meta.namespace, job.meta.service or "")


def _takes_part(view: View) -> bool:
    """Whether a service stands in the line, or a plan's Job runs."""
    if view.meta.deleting:
        return False
    if isinstance(view, ServiceView):
        return any(condition.reason == QUEUED for condition in view.status.conditions)
    if not isinstance(view, JobView) or view.plan is None:
        return False
    return not (view.succeeded or view.failed)
