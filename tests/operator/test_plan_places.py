"""Plan Jobs of many services: so many at a time, the oldest first, and nobody waits for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_operator import names, plan_places
from quire_operator.kinds import JOB, SERVICE_KIND, Manifest
from quire_operator.names import Key
from quire_operator.plan_places import HELD_SECONDS, LOOK_SECONDS, QUEUED, Line, wait
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_pods import PLAN_REPORT

NOW = 1_700_000_000.0
FAILURE = {"reason": "SourceUnreachable", "message": "no connection"}


# ---- whose turn it is ----


def test_there_is_room_for_as_many_as_there_are_places() -> None:
    assert wait(Line(begun=(NOW,)), NOW, 2, again=False) is None
    assert wait(Line(begun=(NOW, NOW)), NOW, 2, again=False) is not None
    assert wait(Line(begun=(NOW,), before=1, length=1), NOW, 2, again=False) is not None


def test_the_oldest_of_those_who_wait_goes_first() -> None:
    second = wait(Line(begun=(NOW,), before=1, length=3), NOW, 2, again=False)
    assert second is not None
    assert second.num_plans == 2
    assert wait(Line(begun=(NOW,), before=0, length=3), NOW, 2, again=False) is None


def test_a_further_attempt_goes_behind_every_first_one() -> None:
    line = Line(begun=(NOW,), before=0, length=1)
    assert wait(line, NOW, 2, again=True) is not None
    assert wait(Line(begun=(NOW,), before=0, length=0), NOW, 2, again=True) is None


def test_who_stands_first_looks_again_when_a_place_is_given_up() -> None:
    begun = (NOW - 50, NOW - 20)
    first = wait(Line(begun=begun), NOW, 2, again=False)
    assert first is not None
    assert first.seconds == HELD_SECONDS - 50
    behind = wait(Line(begun=begun, before=1, length=1), NOW, 2, again=False)
    assert behind is not None
    assert behind.seconds == LOOK_SECONDS
    assert wait(Line(begun=begun), NOW + 10, 2, again=False) is None


@given(st.integers(1, 60), st.integers(0, 2000), st.integers(0, 2000), st.booleans())
def test_nobody_in_the_line_can_keep_all_others_out(
    places: int, before: int, behind: int, again: bool
) -> None:
    """Where nothing runs, whoever looks may ask: the first of the line may be unable to move."""
    assert wait(Line(before=before, length=before + behind), NOW, places, again=again) is None


# ---- over the API server in memory ----


class Many:
    """Services of one control plane whose plan Jobs wait for the test to end them."""

    def __init__(self, rig: Rig, num: int) -> None:
        self.rig, self.cluster = rig, rig.cluster
        self.cluster.plans = None
        self.keys = [Key("default", f"s{n:02}") for n in range(num)]
        for key in self.keys:
            self.cluster.now += 1
            self.cluster.put(service_manifest(key.name))

    def running(self) -> list[str]:
        """Services whose plan Job runs."""
        jobs = [job for job in self.cluster.all(JOB) if is_plan(job) and not ended(job)]
        return sorted(job["metadata"]["labels"][names.LABEL_SERVICE] for job in jobs)

    async def end(self, name: str, report: dict[str, object] | None = None) -> None:
        for job in self.cluster.all(JOB):
            if job["metadata"]["labels"][names.LABEL_SERVICE] == name and is_plan(job):
                self.cluster.end_job(job, report or dict(PLAN_REPORT))
        await self.rig.settle()

    def fits(self, name: str) -> tuple[str, str]:
        told = self.rig.condition(Key("default", name), "Fits")
        return told.reason, told.message


def is_plan(job: Manifest) -> bool:
    return bool(job["metadata"]["labels"][names.COMPONENT] == names.PLAN_CONTAINER)


def ended(job: Manifest) -> bool:
    return bool((job.get("status") or {}).get("conditions"))


@pytest.fixture
def rig() -> Rig:
    return Rig(plan_places=3)


async def test_a_mass_start_asks_by_and_by_the_oldest_first(rig: Rig) -> None:
    many = Many(rig, 9)
    await rig.settle()
    assert many.running() == ["s00", "s01", "s02"]
    assert many.fits("s00")[0] == "Planning"
    assert many.fits("s04") == (QUEUED, "waiting for 4 other plans")
    ready = rig.condition(Key("default", "s04"))
    assert (ready.reason, ready.message) == ("Planning", "waiting for 4 other plans")
    await many.end("s01")
    assert many.running() == ["s00", "s02", "s03"]
    await many.end("s00")
    await many.end("s02")
    assert many.running() == ["s03", "s04", "s05"]


async def test_places_that_are_given_back_at_once_are_all_taken(rig: Rig) -> None:
    many = Many(rig, 9)
    await rig.settle()
    for job in rig.cluster.all(JOB):
        rig.cluster.end_job(job, dict(PLAN_REPORT))
    await rig.settle()
    assert many.running() == ["s03", "s04", "s05"]


async def test_all_come_to_their_turn(rig: Rig) -> None:
    many = Many(rig, 12)
    await rig.settle()
    for _ in range(12):
        if many.running():
            await many.end(many.running()[0])
    assert many.running() == []
    assert {many.fits(key.name)[0] for key in many.keys} == {"MemoryUnknown"}


async def test_an_operator_that_begins_anew_finds_the_same_line(rig: Rig) -> None:
    many = Many(rig, 9)
    await rig.settle()
    other = Rig(cluster=rig.cluster, plan_places=3)
    before = len(rig.cluster.writes)
    for kind in (JOB, SERVICE_KIND):
        for body in reversed(rig.cluster.all(kind)):
            other._feed(kind, "MODIFIED", body)
    await other.settle()
    created = [w for w in rig.cluster.writes[before:] if w.startswith("POST Job")]
    assert created == []
    many.rig = other
    await many.end("s02")
    assert many.running() == ["s00", "s01", "s03"]


async def test_a_younger_one_does_not_pass_those_who_wait(rig: Rig) -> None:
    many = Many(rig, 5)
    await rig.settle()
    rig.cluster.put(service_manifest("young"))
    for job in rig.cluster.all(JOB):
        rig.cluster.end_job(job, dict(PLAN_REPORT))
    rig.woken = {Key("default", "young"): None, **rig.woken}  # is looked at first
    await rig.settle()
    assert many.running() == ["s03", "s04", "young"]


async def test_a_plan_that_cannot_start_keeps_its_place_for_a_minute(rig: Rig) -> None:
    many = Many(rig, 4)
    await rig.settle()
    assert many.running() == ["s00", "s01", "s02"]
    again = rig.again[Key("default", "s03")]
    assert again is not None
    assert again <= HELD_SECONDS
    rig.cluster.now += again
    await rig.wake(Key("default", "s03"))
    assert many.running() == ["s00", "s01", "s02", "s03"]


async def test_one_that_fails_again_and_again_gives_way_to_those_who_wait(rig: Rig) -> None:
    many = Many(rig, 4)
    await rig.settle()
    await many.end("s00", FAILURE)
    assert many.running() == ["s01", "s02", "s03"]
    rig.cluster.now += 20
    await rig.wake(Key("default", "s00"))
    assert many.running() == ["s01", "s02", "s03"]
    reason, message = many.fits("s00")
    assert reason == "SourceUnreachable"
    assert message.endswith("; waiting for 3 other plans")
    assert rig.again[Key("default", "s00")] == plan_places.RETRY_LOOK_SECONDS
    await many.end("s01")
    await rig.wake(Key("default", "s00"))
    assert many.running() == ["s00", "s02", "s03"]


async def test_who_waits_and_is_deleted_or_stopped_makes_room(rig: Rig) -> None:
    many = Many(rig, 7)
    await rig.settle()
    rig.cluster.remove(SERVICE_KIND, Key("default", "s03"))
    rig.cluster.put(service_manifest("s04", replicas=0))
    await rig.settle()
    assert many.fits("s04")[0] == "NotPlanned"
    await many.end("s00")
    assert many.running() == ["s01", "s02", "s05"]
    assert rig.world.places._line[0][2].name == "s06"


async def test_a_place_that_is_free_wakes_several_as_the_first_may_be_unable_to_move(
    rig: Rig,
) -> None:
    Many(rig, 7)
    await rig.settle()
    runs, waits = (rig.world.service(Key("default", name)) for name in ("s00", "s03"))
    woken = rig.world.places.next_after(waits, None)
    assert [key.name for key in woken] == ["s03", "s04", "s05", "s06"]
    assert rig.world.places.next_after(runs, None) == []


async def test_while_it_waits_nothing_is_written_in_an_unchanged_world(rig: Rig) -> None:
    many = Many(rig, 6)
    await rig.settle()
    rig.cluster.now += 30
    for key in many.keys:
        await rig.wake(key)
    before = len(rig.cluster.writes)
    for key in many.keys:
        await rig.wake(key)
    assert len(rig.cluster.writes) == before
