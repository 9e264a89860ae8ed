"""Numbers and foreign text as the console writes them. Pure."""

from __future__ import annotations

from datetime import datetime

_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60


def age(seconds: float) -> str:
    """As kubectl writes it: the two largest units while they say something."""
    whole = max(0, int(seconds))
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    if whole < 10 * _MINUTE:
        return _two(whole, _MINUTE, "m", 1, "s")
    if whole < 3 * _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 8 * _HOUR:
        return _two(whole, _HOUR, "h", _MINUTE, "m")
    if whole < 2 * _DAY:
        return f"{whole // _HOUR}h"
    return f"{whole // _DAY}d"


def _two(whole: int, large: int, large_word: str, small: int, small_word: str) -> str:
    rest = whole % large // small
    return f"{whole // large}{large_word}" + (f"{rest}{small_word}" if rest else "")


def since(time: str | None, now: float) -> str:
    """The age of an RFC 3339 time; "-" for none."""
    return age(now - epoch(time)) if time else "-"


def epoch(time: str) -> float:
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def size(count: float) -> str:
    """In decimal units, as the conditions write it."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def count(value: float | None) -> str:
    """A whole number with thousands apart; "-" for none."""
    return "-" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Of a part, 0 to 1."""
    return "-" if value is None else f"{value * 100:.0f}%"


def duration(seconds: float | None) -> str:
    """Of a latency: three figures; "-" for none."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.3g}s"


def printable(text: str) -> str:
    """One line without control characters: what a pod said last may steer the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
