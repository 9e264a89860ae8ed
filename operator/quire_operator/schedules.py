"""minReplicas by the hour: which of a service's schedules holds now, and until when. Pure.

At any moment the entry holds that fired last. Daylight saving time as Debian's cron has it: a time
of day that the spring skips fires as soon as the clock has jumped, one that the autumn brings twice
fires the first time. (Entries whose minute or hour begins with `*` fire by elapsed time.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from quire_operator.api import Schedule

LOOK_BACK = timedelta(days=366)  # an entry that has not fired for a year does not hold
_LARGEST_SHIFT = timedelta(hours=3)  # of any zone's clock, in either direction


@dataclass(frozen=True, slots=True)
class Minimum:
    """The minReplicas in force. `schedule`: what set it, None for spec.minReplicas; `until`: when
    that may change next, None for never; `errors`: one sentence for each entry that is not
    understood, which then counts for nothing."""

    replicas: int
    schedule: Schedule | None = None
    until: datetime | None = None
    errors: tuple[str, ...] = ()


def minimum(schedules: Sequence[Schedule], otherwise: int, now: datetime) -> Minimum:
    """`otherwise`: spec.minReplicas; `now` with a time zone. Of entries that fired at the same
    moment the one with the most replicas holds."""
    fired: list[tuple[datetime, int, Schedule]] = []
    coming: list[datetime] = []
    errors: list[str] = []
    for schedule in schedules:
        try:
            last, following = _around(schedule, now)
        except ValueError as error:
            errors.append(str(error))
            continue
        if last is not None:
            fired.append((last, schedule.min_replicas, schedule))
        if following is not None:
            coming.append(following)
    until = min(coming, default=None)
    if not fired:
        return Minimum(otherwise, None, until, tuple(errors))
    _, replicas, schedule = max(fired, key=lambda entry: entry[:2])
    return Minimum(replicas, schedule, until, tuple(errors))


def _around(schedule: Schedule, now: datetime) -> tuple[datetime | None, datetime | None]:
    """When it fired last (within a year) and fires next, in UTC. ValueError with a sentence."""
    local = now.astimezone(_zone(schedule))
    # The library walks by the clock on the wall, on which an hour of the autumn stands twice. So it
    # starts at a distance, and its moments are compared as moments.
    last = _first_before(_moments(schedule, local + _LARGEST_SHIFT, reverse=True), now)
    following = _first_after(_moments(schedule, local - _LARGEST_SHIFT, reverse=False), now)
    return (last if last is not None and last >= now - LOOK_BACK else None), following


def _zone(schedule: Schedule) -> ZoneInfo:
    try:
        return ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: "Europe" is a folder
        raise ValueError(
            f"timeZone must be an IANA name such as Europe/Berlin, got {schedule.time_zone!r}"
        ) from None


def _moments(schedule: Schedule, start: datetime, *, reverse: bool) -> CronSim:
    try:
        return CronSim(schedule.cron, start, reverse=reverse)
    except CronSimError as error:
        raise ValueError(
            f"cron must be five cron fields, got {schedule.cron!r} ({str(error).lower()})"
        ) from None


def _first_before(moments: CronSim, now: datetime) -> datetime | None:
    return next((at for at in map(_utc, moments) if at <= now), None)


def _first_after(moments: CronSim, now: datetime) -> datetime | None:
    return next((at for at in map(_utc, moments) if at > now), None)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
