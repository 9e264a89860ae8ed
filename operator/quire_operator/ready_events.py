"""What condition Ready tells as Events on the service: each turn of its reason, once. Pure.

The reason before is the one in status, so that a restart of the operator tells nothing anew.
"""

from __future__ import annotations

from quire_operator.api import Condition
from quire_operator.events import Note
from quire_operator.reasons import READY, TABLE

_BY_REASON = {entry.reason: entry for entry in TABLE}


def note(before: list[Condition], after: list[Condition]) -> Note | None:
    """Of the conditions as they were and as they are written now; None where Ready has not turned.
    Trouble of the scaler is its own to tell (`scaling_events.py`), or the HPA's, or KEDA's."""
    now, was = _ready(after), _ready(before)
    if now is None or (was is not None and _turn(was) == _turn(now)):
        return None
    entry = _BY_REASON.get(now.reason)
    is_trouble = entry is not None and entry.is_trouble
    return Note("Warning" if is_trouble else "Normal", now.reason, now.message)


def _turn(condition: Condition) -> tuple[str, str]:
    """What counts as the same: the scaler's trouble beside ready pods is but Ready."""
    entry = _BY_REASON.get(condition.reason)
    is_scalers = entry is not None and entry.level == "scaler"
    return condition.status, READY if is_scalers else condition.reason


def _ready(conditions: list[Condition]) -> Condition | None:
    return next((c for c in conditions if c.type == READY), None)
