"""Who is next of the sequences that wait.

1. The lower `priority`.
2. Within one priority those that were begun and preempted, in the order in which they were begun:
   somebody reads their answers already, and their room was taken for others.
3. Then the user who was served least (`fair_shares.py`).
4. Within one user, the order of arrival.

Only the first in line is ever admitted. Where it is too long for the room there is, all wait with
it: nobody smaller slips by.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from itertools import chain

from quire_engine.fair_shares import FairShares
from quire_engine.sequence import Sequence


class WaitingLine:
    """The sequences that do not run, first one on top."""

    def __init__(self) -> None:
        self.shares = FairShares()
        self._preempted: list[Sequence] = []  # by rank
        self._lanes: dict[tuple[int, str], deque[Sequence]] = {}  # by arrival; none is empty

    def __len__(self) -> int:
        return len(self._preempted) + sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in no order that means anything."""
        return chain(self._preempted, *self._lanes.values())

    def add(self, sequence: Sequence) -> None:
        """A new one, behind all of its user and priority."""
        self._lanes.setdefault((sequence.priority, sequence.user), deque()).append(sequence)
        self.shares.enter(sequence.user)

    def put_back(self, sequence: Sequence) -> None:
        """One that was begun and had to give its blocks back."""
        insort(self._preempted, sequence, key=lambda waiting: waiting.rank)

    def first(self) -> Sequence:
        """Who is next; there must be one."""
        heads = [lane[0] for lane in self._lanes.values()]
        return min((*self._preempted[:1], *heads), key=self._place)

    def begin(self, sequence: Sequence, num_tokens: int) -> None:
        """`sequence` runs from now on, with `num_tokens` to compute that count for its user."""
        if sequence.admission:
            self._preempted.remove(sequence)
        else:
            self._take_out(sequence)
            self.shares.begin(sequence.user, num_tokens)

    def drop(self, sequence: Sequence) -> None:
        """Nobody wants `sequence` any more."""
        if sequence.admission:
            self._preempted.remove(sequence)
        else:
            self._take_out(sequence)
            self.shares.leave(sequence.user)

    def _place(self, sequence: Sequence) -> tuple[float, ...]:
        if sequence.admission:
            return (sequence.priority, 0, sequence.admission)
        return (sequence.priority, 1, self.shares.served(sequence.user), sequence.arrival)

    def _take_out(self, sequence: Sequence) -> None:
        key = (sequence.priority, sequence.user)
        self._lanes[key].remove(sequence)
        if not self._lanes[key]:
            del self._lanes[key]
