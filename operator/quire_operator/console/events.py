"""Events, as far as the console tells of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator.kinds import Manifest
from quire_operator.projections import epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """One Event. `time`: epoch seconds of the last time that it came to pass."""

    uid: str
    """Of what it is about."""
    object: str
    """kind/name"""
    time: float
    type: str
    reason: str
    message: str
    count: int


def event_of(body: Manifest) -> EventView:
    """Of core/v1, written by either generation of clients: newer ones leave lastTimestamp empty."""
    about, series = body.get("involvedObject") or {}, body.get("series") or {}
    last = (
        series.get("lastObservedTime")
        or body.get("lastTimestamp")
        or body.get("eventTime")
        or body["metadata"].get("creationTimestamp")
    )
    return EventView(
        uid=about.get("uid", ""),
        object=f"{about.get('kind', '')}/{about.get('name', '')}",
        time=epoch(last) or 0.0,
        type=body.get("type", "Normal"),
        reason=body.get("reason", ""),
        message=body.get("message", ""),
        count=series.get("count") or body.get("count") or 1,
    )
