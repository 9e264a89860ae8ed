"""Which service has which port of the gateway's. No I/O, no clock.

At zero replicas a service's own address leads to the gateway, and behind it the gateway can tell
the services apart by the port only. A port is what `status.gatewayPort` says, so it survives the
operator; what the leader has given out and not yet written is held here, so that no two services
that are reconciled at once get the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator import names
from quire_operator.names import Key

FIRST_PORT = 20000
LAST_PORT = 29999
"""Above what programs listen on, below node ports (30000) and ephemeral ones (32768)."""

Age = tuple[float, str]
"""Creation and uid of a service: of two that claim one port, the older keeps it."""


@dataclass(frozen=True, slots=True)
class _Told:
    port: int | None
    age: Age


class Ports:
    """Owner of the range. Statuses are told to it, the leader takes from it."""

    def __init__(self) -> None:
        self._told: dict[Key, _Told] = {}
        self._given: dict[Key, int] = {}
        """By this process, and not yet seen in a status."""
        self._holders: dict[int, set[Key]] = {}

    def learn(self, key: Key, port: int | None, age: Age) -> set[Key]:
        """Takes what a status says. Returns the others that hold the same port."""
        before = self.port(key)
        self._told[key] = _Told(port, age)
        if self._given.get(key) == port:
            self._given.pop(key, None)
        self._move(key, before)
        now = self.port(key)
        return self._holders[now] - {key} if now is not None else set()

    def forget(self, key: Key) -> None:
        """The service is gone."""
        before = self.port(key)
        self._told.pop(key, None)
        self._given.pop(key, None)
        self._move(key, before)

    def port(self, key: Key) -> int | None:
        """What a service holds, rightly or not."""
        told = self._told.get(key)
        return self._given.get(key, told.port if told is not None else None)

    def hold(self, key: Key) -> int | None:
        """The port that a known service keeps, or a free one for it. None: all are taken."""
        held = self.port(key)
        if held is not None and FIRST_PORT <= held <= LAST_PORT and self._is_rightful(key, held):
            return held
        free = self._free(key)
        if free is not None:
            self._given[key] = free
            self._move(key, held)
        return free

    def release(self, key: Key) -> None:
        """Takes back what was given out and never written: the service wants none any more."""
        before = self.port(key)
        self._given.pop(key, None)
        self._move(key, before)

    def _is_rightful(self, key: Key, port: int) -> bool:
        return key == min(self._holders[port], key=lambda holder: (self._told[holder].age, holder))

    def _free(self, key: Key) -> int | None:
        """From the name's own place on, so that it mostly gets the same one wherever it runs."""
        size = LAST_PORT - FIRST_PORT + 1
        start = int(names.digest(str(key), 8), 16)
        for step in range(size):
            port = FIRST_PORT + (start + step) % size
            if not self._holders.get(port):
                return port
        return None

    def _move(self, key: Key, before: int | None) -> None:
        now = self.port(key)
        if before is not None and before != now:
            self._holders[before].discard(key)
        if now is not None:
            self._holders.setdefault(now, set()).add(key)
