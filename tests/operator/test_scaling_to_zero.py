"""`decide` to zero and back: who may sleep, what keeps it awake and what wakes it."""

from dataclasses import replace

import pytest

from quire_operator.scaling import (
    PodLoad,
    Reason,
    ScalingConfig,
    decide,
    remember,
)
from quire_operator.scaling_history import History
from quire_operator.testing_scaling import INTERVAL, seen

QUEUE_ONLY = ScalingConfig(max_replicas=16, kv_cache_utilization=None)


SLEEPY = replace(QUEUE_ONLY, min_replicas=2, idle_seconds_to_zero=60.0)


def quiet_loads(ready: int, **changes: float | None) -> tuple[PodLoad, ...]:
    return (replace(PodLoad(0.0, 0.0, 0.0, arrivals=0.0), **changes),) * ready  # type: ignore[arg-type]


def idle_history(config: ScalingConfig, replicas: int, seconds: float) -> History:
    """What that many seconds without a request leave behind at 10,000."""
    history = History()
    for now in range(10_000 - int(seconds), 10_000, int(INTERVAL)):
        observation = seen(replicas, now=float(now), loads=quiet_loads(replicas))
        history = remember(config, history, decide(config, history, observation), applied=False)
    return history


@pytest.mark.parametrize("replicas", [1, 2, 9])
def test_idle_for_long_enough_all_pods_go_at_once(replicas: int) -> None:
    asleep = seen(replicas, loads=quiet_loads(replicas), gateway_ready=True)
    history = idle_history(SLEEPY, replicas, seconds=60)
    decision = decide(SLEEPY, history, asleep)
    assert (decision.to_replicas, decision.reason) == (0, Reason.IDLE)
    too_soon = idle_history(SLEEPY, replicas, seconds=55)
    assert decide(SLEEPY, too_soon, asleep).to_replicas != 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"activated": True}, Reason.INSIDE_TARGETS),
        ({"gateway_ready": False}, Reason.NO_GATEWAY),
        ({"loads": quiet_loads(2, running=1.0)}, Reason.INSIDE_TARGETS),
        ({"loads": quiet_loads(2, waiting=1.0)}, Reason.INSIDE_TARGETS),
        ({"loads": quiet_loads(2, arrivals=1.0)}, Reason.INSIDE_TARGETS),
        ({"loads": quiet_loads(2, arrivals=None)}, Reason.METRICS_PARTIAL),
        ({"loads": quiet_loads(2, running=None)}, Reason.METRICS_PARTIAL),
        ({"loads": quiet_loads(1)}, Reason.METRICS_PARTIAL),
        ({"loads": ()}, Reason.METRICS_MISSING),
        ({"doubtful": 1}, Reason.METRICS_PARTIAL),
        ({"ready": 0, "starting": 2, "loads": ()}, Reason.NO_READY_PODS),
    ],
)
def test_what_keeps_a_service_awake(changes: dict[str, object], reason: Reason) -> None:
    base = {"loads": quiet_loads(2), "gateway_ready": True}
    decision = decide(SLEEPY, idle_history(SLEEPY, 2, seconds=600), seen(2, **{**base, **changes}))
    assert (decision.to_replicas, decision.reason) == (2, reason)


def test_without_a_gateway_an_idle_service_still_comes_down_to_its_minimum() -> None:
    history = idle_history(SLEEPY, 3, seconds=600)
    decision = decide(SLEEPY, history, seen(3, loads=quiet_loads(3)))
    assert (decision.to_replicas, decision.reason) == (2, Reason.LOAD_FITS_FEWER)


def test_without_idle_seconds_a_service_never_sleeps() -> None:
    history = idle_history(QUEUE_ONLY, 1, seconds=6000)
    awake = decide(QUEUE_ONLY, history, seen(1, loads=quiet_loads(1), gateway_ready=True))
    assert (awake.to_replicas, awake.reason) == (1, Reason.INSIDE_TARGETS)


@pytest.mark.parametrize(
    ("config", "changes", "to", "reason"),
    [
        (QUEUE_ONLY, {"activated": True, "gateway_ready": True}, 0, Reason.PAUSED),
        (SLEEPY, {"gateway_ready": True}, 0, Reason.ASLEEP),
        (SLEEPY, {}, 0, Reason.NO_GATEWAY),
        (SLEEPY, {"activated": True, "gateway_ready": True}, 2, Reason.ACTIVATED),
        (SLEEPY, {"activated": True}, 2, Reason.ACTIVATED),
        (replace(SLEEPY, min_replicas=1), {"activated": True}, 1, Reason.ACTIVATED),
    ],
)
def test_only_an_activation_wakes_and_only_from_sleep(
    config: ScalingConfig, changes: dict[str, object], to: int, reason: Reason
) -> None:
    decision = decide(config, History(), seen(0, **changes))
    assert (decision.to_replicas, decision.reason) == (to, reason)
    assert decision.blindness is None


def test_after_waking_it_does_not_sleep_again_before_the_whole_time() -> None:
    """Asleep for an hour, woken at 0 by a Lease of 15 s, ready at 30, and nothing comes."""
    history, replicas, times = History(), 0, []
    for now in range(-3600, 300, int(INTERVAL)):
        ready = replicas if now >= 30 else 0
        observation = seen(
            replicas,
            now=float(now),
            ready=ready,
            starting=replicas - ready,
            loads=quiet_loads(ready),
            gateway_ready=True,
            activated=0 <= now < 15,
        )
        decision = decide(SLEEPY, history, observation)
        history = remember(SLEEPY, history, decision, applied=True)
        if decision.changed:
            times.append((now, decision.to_replicas))
        replicas = decision.to_replicas
    assert times == [(0, 2), (30 + 60, 0)]


def test_a_lost_scrape_is_no_request_and_a_long_silence_is_not_known() -> None:
    def sleeps_at(silent: range, busy: range = range(0)) -> int:
        history = History()
        for now in range(0, 600, int(INTERVAL)):
            load = quiet_loads(1, arrivals=1.0 if now in busy else 0.0)
            observation = seen(
                1, now=float(now), gateway_ready=True, loads=() if now in silent else load
            )
            decision = decide(replace(SLEEPY, min_replicas=1), history, observation)
            if decision.changed:
                return now
            history = remember(SLEEPY, history, decision, applied=False)
        raise AssertionError("never slept")

    assert sleeps_at(range(0)) == 60
    assert sleeps_at(range(20, 26)) == 60
    assert sleeps_at(range(20, 41)) == 105  # known again at 45
    assert sleeps_at(range(0), busy=range(50, 51)) == 115
    assert sleeps_at(range(50, 51), busy=range(55, 56)) == 120


def test_a_stalled_loop_knows_nothing_of_the_time_it_slept_through() -> None:
    late = seen(2, loads=quiet_loads(2), gateway_ready=True, now=10_100.0)
    assert decide(SLEEPY, idle_history(SLEEPY, 2, seconds=600), late).to_replicas == 2


def test_a_schedule_that_is_not_understood_keeps_a_service_awake() -> None:
    config = replace(SLEEPY, schedule_errors=("cron must be five cron fields, got 'x'",))
    idle = seen(4, gateway_ready=True, loads=quiet_loads(4))
    assert decide(config, idle_history(config, 4, seconds=600), idle).to_replicas == 4
