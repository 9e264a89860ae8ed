"""Which minReplicas holds when: several entries, odd dates, clocks that jump, bad expressions."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_operator.api import Schedule
from quire_operator.schedules import Minimum, minimum

OFFICE = Schedule(cron="0 8 * * 1-5", min_replicas=5, time_zone="Europe/Berlin")
NIGHT = Schedule(cron="0 18 * * 1-5", min_replicas=2, time_zone="Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def berlin(cron: str, replicas: int = 5) -> Schedule:
    return Schedule(cron=cron, min_replicas=replicas, time_zone="Europe/Berlin")


def test_without_schedules_the_spec_holds_for_ever() -> None:
    assert minimum([], 3, at("2026-11-21T00:00:00Z")) == Minimum(3)


@pytest.mark.parametrize(
    ("now", "replicas", "until"),
    [
        ("2026-11-20T06:59:59Z", 2, "2026-11-20T07:00:00Z"),  # Friday, before eight in Berlin
        ("2026-11-20T07:00:00Z", 5, "2026-11-20T17:00:00Z"),
        ("2026-11-20T16:59:59Z", 5, "2026-11-20T17:00:00Z"),
        ("2026-11-20T17:00:00Z", 2, "2026-11-23T07:00:00Z"),
        ("2026-11-22T12:00:00Z", 2, "2026-11-23T07:00:00Z"),  # Sunday
        ("2026-07-20T05:59:59Z", 2, "2026-07-20T06:00:00Z"),  # summer time
        ("2026-07-20T06:00:00Z", 5, "2026-07-20T16:00:00Z"),
    ],
)
def test_the_entry_that_fired_last_holds(now: str, replicas: int, until: str) -> None:
    found = minimum([OFFICE, NIGHT], 1, at(now))
    assert (found.replicas, found.until, found.errors) == (replicas, at(until), ())
    assert found.schedule is (OFFICE if replicas == 5 else NIGHT)


def test_entries_of_one_moment_give_the_larger() -> None:
    same = Schedule(cron="0 7 * * *", min_replicas=9)
    assert minimum([OFFICE, same], 1, at("2026-11-20T07:30:00Z")).replicas == 9
    assert minimum([same, OFFICE], 1, at("2026-11-20T07:30:00Z")).replicas == 9


def test_before_any_has_fired_within_a_year_the_spec_holds() -> None:
    leap_day = Schedule(cron="0 0 29 2 *", min_replicas=7)
    found = minimum([leap_day], 3, at("2026-11-21T00:00:00Z"))
    assert (found.replicas, found.schedule) == (3, None)
    assert found.until == at("2028-02-29T00:00:00Z")
    assert minimum([leap_day], 3, at("2028-03-01T00:00:00Z")).replicas == 7
    assert minimum([leap_day], 3, at("2029-02-28T00:00:00Z")).replicas == 7
    assert minimum([leap_day], 3, at("2029-03-02T00:00:00Z")).replicas == 3


@pytest.mark.parametrize(
    ("cron", "before", "fires"),
    [
        # 29 March 2026: 02:00 in Berlin is 03:00. 02:30 does not exist, and fires at the jump.
        ("30 2 * * *", "2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"),
        ("0 3 * * *", "2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"),
        ("30 1 * * *", "2026-03-29T00:29:59Z", "2026-03-29T00:30:00Z"),
        # 25 October 2026: 03:00 is 02:00 again. 02:30 exists twice, and fires the first time.
        ("30 2 * * *", "2026-10-25T00:29:59Z", "2026-10-25T00:30:00Z"),
        ("0 3 * * *", "2026-10-25T01:59:59Z", "2026-10-25T02:00:00Z"),
    ],
)
def test_the_clock_that_jumps(cron: str, before: str, fires: str) -> None:
    entry = berlin(cron)
    yesterday = berlin("0 12 * * *", 1)
    found = minimum([entry, yesterday], 3, at(before))
    assert (found.replicas, found.until) == (1, at(fires))
    assert minimum([entry, yesterday], 3, at(fires)).schedule is entry


def test_an_hour_that_comes_twice_fires_once() -> None:
    entry, later = berlin("30 2 * * *"), berlin("45 2 * * *", 2)
    for minutes in range(0, 180, 5):
        now = at("2026-10-25T00:00:00Z") + timedelta(minutes=minutes)
        expected = 2 if minutes < 30 or minutes >= 45 else 5
        assert minimum([entry, later], 1, now).replicas == expected, now


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Schedule(cron="0 8 * * 1-8", min_replicas=5), "got '0 8 * * 1-8' (bad day-of-week)"),
        (Schedule(cron="61 8 * * *", min_replicas=5), "got '61 8 * * *' (bad minute)"),
        (Schedule(cron="0 0 31 2 *", min_replicas=5), "(bad day-of-month)"),
        (Schedule(cron="a b c d e", min_replicas=5), "cron must be five cron fields"),
        (Schedule(cron="0 8 * * *", min_replicas=5, time_zone="Europe/Bonn"), "got 'Europe/Bonn'"),
        (Schedule(cron="0 8 * * *", min_replicas=5, time_zone="Europe"), "must be an IANA name"),
        (Schedule(cron="0 8 * * *", min_replicas=5, time_zone="../etc"), "must be an IANA name"),
    ],
)
def test_what_is_not_understood_is_told_and_counts_for_nothing(
    broken: Schedule, words: str
) -> None:
    found = minimum([broken, NIGHT], 1, at("2026-11-20T12:00:00Z"))
    (error,) = found.errors
    assert words in error
    assert (found.replicas, found.schedule) == (2, NIGHT)


FIELDS = st.tuples(
    st.sampled_from(["0", "30", "*/15", "5,55", "0-59"]),
    st.sampled_from(["0", "1", "2", "3", "*/6", "1-4", "*"]),
    st.sampled_from(["*", "1", "25", "29", "31", "L"]),
    st.sampled_from(["*", "2", "3", "10", "3,10"]),
    st.sampled_from(["*", "0", "1-5", "5L", "1#2"]),
)


@given(
    fields=FIELDS,
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    minutes=st.integers(0, 60 * 24 * 365),
)
@settings(max_examples=150, deadline=None)
def test_what_fires_next_is_what_fired_last_afterwards(
    fields: tuple[str, ...], zone: str, minutes: int
) -> None:
    """Looking forward and looking back agree, across every jump of the clock."""
    entry = Schedule(cron=" ".join(fields), min_replicas=5, time_zone=zone)
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    before = minimum([entry], 1, now)
    if before.errors or before.until is None:
        return
    fires = before.until
    assert fires > now
    assert minimum([entry], 1, fires).schedule is entry
    assert minimum([entry], 1, fires - timedelta(seconds=1)).until == fires
