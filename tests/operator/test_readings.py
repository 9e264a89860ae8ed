"""Since when a service is idle: only what was known all the while counts."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from quire_operator.names import Key
from quire_operator.readings import Reading, Readings

CHAT = Key("default", "chat")
IDLE = Reading(at=0.0, wall=0.0, ready=1, complete=True, idle=True)
BUSY = replace(IDLE, idle=False)
UNKNOWN = replace(IDLE, idle=None)
PARTIAL = replace(IDLE, complete=False)


@pytest.mark.parametrize(
    ("rounds", "since"),
    [
        ([IDLE], 0.0),
        ([IDLE, IDLE, IDLE], 0.0),
        ([IDLE, BUSY, IDLE, IDLE], 10.0),
        ([IDLE, UNKNOWN, IDLE], 10.0),
        ([IDLE, PARTIAL, IDLE], 10.0),
        ([IDLE, BUSY], None),
        ([IDLE, None, None, IDLE], 0.0),
        ([IDLE, None, None, None, IDLE], 20.0),
    ],
)
def test_idle_since(rounds: Sequence[Reading | None], since: float | None) -> None:
    """One round each 5 s; None: a round that did not happen. 15 s without one are a gap."""
    readings = Readings(gap_seconds=15.0)
    for number, reading in enumerate(rounds):
        if reading is not None:
            readings.put(CHAT, replace(reading, at=5.0 * number))
    latest = readings.get(CHAT)
    assert latest is not None
    assert latest.idle_since == since


def test_what_is_forgotten_begins_anew() -> None:
    readings = Readings(gap_seconds=15.0)
    readings.put(CHAT, IDLE)
    readings.forget(CHAT)
    assert readings.get(CHAT) is None
    readings.put(CHAT, replace(IDLE, at=5.0))
    latest = readings.get(CHAT)
    assert latest is not None
    assert latest.idle_since == 5.0
