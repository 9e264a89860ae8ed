"""When to try again."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import (
    LONGEST_RETRY_AFTER,
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


def patience(max_attempts: int) -> Patience:
    return Patience(max_attempts, stall_seconds=60.0, silence_seconds=19.0, heard=0.0)


def spent(patience: Patience, *errors: tuple[float, TryAgain]) -> list[bool]:
    return [patience.is_spent(error, begin) for begin, error in errors]


def test_answers_are_borne_more_often_than_silences() -> None:
    assert spent(patience(8), *[(i, ANSWER) for i in range(8)]) == [False] * 7 + [True]
    silences = [(20.0 * i, SILENCE) for i in (1, 2, 3)]
    assert spent(patience(8), *silences) == [False, False, True]


def test_an_answer_ends_a_row_of_silences_but_counts_itself() -> None:
    row = [(19, SILENCE), (39, SILENCE), (40, ANSWER), (60, SILENCE), (80, SILENCE)]
    assert spent(patience(5), *row) == [False] * 4 + [True]
    assert spent(patience(8), *row, (100, SILENCE)) == [False] * 5 + [True]


def test_what_came_renews_patience() -> None:
    one = patience(2)
    assert spent(one, (1, ANSWER)) == [False]
    one.renew()
    assert spent(one, (2, ANSWER), (3, ANSWER)) == [False, True]


def test_a_byte_begins_the_minute_anew() -> None:
    one = patience(8)
    assert spent(one, (19, SILENCE), (39, SILENCE)) == [False, False]
    one.heard = 45.0
    assert spent(one, (64, SILENCE), (84, SILENCE), (104, SILENCE)) == [False, False, True]


@given(st.lists(st.floats(0.01, 1.0), min_size=100, max_size=100))
def test_a_stall_is_told_within_a_minute(shares: list[float]) -> None:
    """Whatever share of its time each wait takes: for a connection, a listing or a part."""
    source = SourceOptions()
    one = Patience(100, source.stall_seconds, source.silence_seconds, heard=0.0)
    now, backoff = 0.0, Backoff(source.backoff_seconds)
    for failures, share in enumerate(shares, 1):
        now += share * source.silence_seconds
        pause = backoff.seconds(failures, 0.0)
        if one.is_spent(SILENCE, now + pause):
            break
        now += pause
    assert now <= source.stall_seconds


def test_three_whole_silences_fit_into_a_stall() -> None:
    source = SourceOptions()
    one = Patience(8, source.stall_seconds, source.silence_seconds, heard=0.0)
    assert spent(one, (19.5, SILENCE), (39.5, SILENCE), (60.5, SILENCE)) == [False, False, True]
