"""A standstill counts while work is pending, and only then."""

from quire_engine.api.health import LOAD_FACTOR, HealthMonitor, HealthReport
from quire_engine.progress import Progress


def check(
    monitor: HealthMonitor,
    counter: int,
    now: float,
    *,
    pending: int = 0,
    pending_since: float | None = None,
    alive: bool = True,
    loading: bool = False,
) -> HealthReport:
    return monitor.check(
        Progress(counter, pending, 0),
        now=now,
        alive=alive,
        loading=loading,
        pending_since=pending_since,
    )


def test_an_idle_core_may_stand_still_for_ever() -> None:
    monitor = HealthMonitor(60, now=0)
    assert check(monitor, 5, 1).healthy
    assert check(monitor, 5, 100_000) == HealthReport(True, "Idle")


def test_a_core_that_stands_still_with_work_is_hung() -> None:
    monitor = HealthMonitor(60, now=0)
    assert check(monitor, 5, 10, pending_since=10).healthy
    assert check(monitor, 5, 70, pending_since=10).healthy
    report = check(monitor, 5, 70.1, pending_since=10)
    assert (report.healthy, report.reason) == (False, "Stalled")
    assert report.stalled_seconds > 60


def test_a_core_that_hangs_is_hung_still_when_its_last_client_has_left() -> None:
    monitor = HealthMonitor(60, now=0)
    assert check(monitor, 5, 10, pending=3, pending_since=10).healthy
    assert check(monitor, 5, 60, pending=3).reason == "Working"
    report = check(monitor, 5, 70.1, pending=3)
    assert (report.healthy, report.reason) == (False, "Stalled")


def test_a_hung_core_is_not_excused_by_a_new_request() -> None:
    monitor = HealthMonitor(60, now=0)
    check(monitor, 5, 10, pending=3)
    assert not check(monitor, 5, 71, pending=3, pending_since=70).healthy


def test_a_long_prefill_moves_the_counter() -> None:
    monitor = HealthMonitor(60, now=0)
    for now in range(10, 3600, 10):
        assert check(monitor, now, now, pending_since=10).healthy


def test_idle_time_before_a_request_does_not_count() -> None:
    monitor = HealthMonitor(60, now=0)
    check(monitor, 5, 0)
    assert check(monitor, 5, 3600, pending_since=3599).healthy


def test_it_recovers_when_the_core_moves_again() -> None:
    monitor = HealthMonitor(60, now=0)
    check(monitor, 5, 0, pending_since=0)
    assert not check(monitor, 5, 100, pending_since=0).healthy
    assert check(monitor, 6, 101, pending_since=0).healthy


def test_ready_looks_elsewhere_before_health_ends_it() -> None:
    monitor = HealthMonitor(60, now=0)
    check(monitor, 5, 10, pending_since=10)
    assert not check(monitor, 5, 18, pending_since=10).stands_still(8)
    report = check(monitor, 5, 18.1, pending_since=10)
    assert report.stands_still(8)
    assert report.healthy
    assert report.standstill == "no layer has run for 8 s with work pending"
    assert not check(monitor, 6, 19, pending_since=10).stands_still(8)
    assert not check(monitor, 6, 1000).stands_still(8), "an idle core stands still by right"


def test_ready_is_as_patient_with_a_load_as_health() -> None:
    monitor = HealthMonitor(60, now=0)
    check(monitor, 0, 0, loading=True)
    assert not check(monitor, 0, 60 * LOAD_FACTOR, loading=True).stands_still(8)
    report = check(monitor, 0, 60 * LOAD_FACTOR + 1, loading=True)
    assert report.stands_still(8)
    assert report.standstill == "nothing of the model has been loaded for 301 s"


def test_loading_is_given_longer_and_not_for_ever() -> None:
    monitor = HealthMonitor(60, now=0)
    assert check(monitor, 0, 0, loading=True).healthy
    assert check(monitor, 0, 60 * LOAD_FACTOR, loading=True).healthy
    assert not check(monitor, 0, 61 * LOAD_FACTOR, loading=True).healthy
    assert check(monitor, 1, 62 * LOAD_FACTOR, loading=True).healthy


def test_a_dead_core_is_not_healthy() -> None:
    assert check(HealthMonitor(60, now=0), 1, 1, alive=False) == HealthReport(False, "CoreDied")
