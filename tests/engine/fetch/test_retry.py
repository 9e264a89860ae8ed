"""When to try again."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import (
    LONGEST_RETRY_AFTER,
    SILENCES,
    Backoff,
    Patience,
    TryAgain,
    retry_after_seconds,
)

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


ANSWER = TryAgain(SourceUnreachable("HTTP 503"))
SILENCE = TryAgain(SourceUnreachable("ConnectTimeout"), silent=True)


def spent(patience: Patience, *errors: TryAgain) -> list[bool]:
    return [patience.is_spent(error) for error in errors]


def test_answers_are_borne_more_often_than_silences() -> None:
    assert spent(Patience(8), *[ANSWER] * 8) == [False] * 7 + [True]
    assert spent(Patience(8), *[SILENCE] * 3) == [False, False, True]


def test_an_answer_ends_a_row_of_silences_but_counts_itself() -> None:
    assert spent(Patience(5), SILENCE, SILENCE, ANSWER, SILENCE, SILENCE) == [False] * 4 + [True]


def test_what_came_renews_patience() -> None:
    patience = Patience(2)
    assert spent(patience, ANSWER) == [False]
    patience.renew()
    assert spent(patience, ANSWER, ANSWER) == [False, True]


def test_a_stall_is_told_within_a_minute() -> None:
    """Three silences and the waits between them, of the listing and of a part."""
    source = SourceOptions()
    backoff = Backoff(source.backoff_seconds)
    waits = sum(backoff.seconds(failures, 0.0) for failures in range(1, SILENCES))
    listing = source.stall_seconds / (SILENCES + 1)
    part = source.stall_seconds * 0.95 / SILENCES
    assert SILENCES * max(listing, part) + waits <= 60.0
