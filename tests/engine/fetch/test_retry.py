"""When to try again."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.fetch.retry import LONGEST_RETRY_AFTER, Backoff, retry_after_seconds

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_waits_grow_and_stay_bounded(failures: int, chance: float) -> None:
    seconds = Backoff(0.5).seconds(failures, chance)
    full = min(30.0, 0.5 * 2 ** (failures - 1))
    assert full / 2 <= seconds <= full


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        ("-3", 0.0),
        ("100000", LONGEST_RETRY_AFTER),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW) == seconds
