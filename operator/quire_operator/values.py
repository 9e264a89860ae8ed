"""Values as the API server spells them: quantities, times, and when a live object holds another."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_QUANTITY = re.compile(r"^([0-9.]+)([a-zA-Z]*)$")
_FACTORS = {
    "": 1.0,
    "m": 1e-3,
    **{suffix: 1000.0 ** (i + 1) for i, suffix in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{suffix: 1024.0 ** (i + 1) for i, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


def quantity(value: object) -> float | None:
    """The number that a Kubernetes quantity means; None for what is none."""
    match = _QUANTITY.match(str(value))
    if not match or match[2] not in _FACTORS:
        return None
    try:
        return float(match[1]) * _FACTORS[match[2]]
    except ValueError:
        return None


def timestamp(seconds: float) -> str:
    """Epoch seconds as RFC 3339, whole seconds, UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(seconds: float) -> str:
    """Epoch seconds as RFC 3339 with microseconds, UTC: a Lease's times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def holds(live: object, wanted: object) -> bool:
    """Whether the live value has all that is wanted.

    The API server adds defaults, drops empty values and rewrites quantities ("1000m" is "1"); list
    items that others own may lie between ours.
    """
    if isinstance(wanted, dict):
        fields = live if isinstance(live, dict) else {}
        return all(holds(fields.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        items = live if isinstance(live, list) else []
        return all(any(holds(item, value) for item in items) for value in wanted)
    if live is None:
        return not wanted
    if live == wanted and isinstance(live, bool) == isinstance(wanted, bool):
        return True
    number = quantity(wanted) if not isinstance(wanted, bool) else None
    return number is not None and number == quantity(live)
