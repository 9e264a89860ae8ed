"""`decide`: its rules in tables. Sleep is in test_scaling_to_zero.py, its promises over random
histories in test_scaling_histories.py."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from quire_operator.scaling import (
    Decision,
    Observation,
    PodLoad,
    Reason,
    ScalingConfig,
    Ttft,
    decide,
    remember,
)
from quire_operator.scaling_history import History
from quire_operator.testing_scaling import INTERVAL, loads, seen

QUEUE_ONLY = ScalingConfig(max_replicas=16, kv_cache_utilization=None)
ALL_TARGETS = ScalingConfig(max_replicas=16, ttft_seconds=1.0)


def quiet_history(config: ScalingConfig, replicas: int, until: float = 10_000.0) -> History:
    """What a window of complete metrics without load leaves behind."""
    history = History()
    now = until - config.down_window_seconds - INTERVAL
    while now < until:
        observation = seen(replicas, now=now, ttft=Ttft(0.0, 0))
        history = remember(config, history, decide(config, History(), observation), applied=False)
        now += INTERVAL
    return history


# ---- up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "changes", "to", "reason"),
    [
        (1, {"loads": loads(1, waiting=4)}, 1, Reason.INSIDE_TARGETS),
        (1, {"loads": loads(1, waiting=5)}, 2, Reason.QUEUE_DEPTH),
        (1, {"loads": loads(1, waiting=100)}, 2, Reason.QUEUE_DEPTH),
        (4, {"loads": loads(4, waiting=28)}, 7, Reason.QUEUE_DEPTH),
        (4, {"loads": loads(4, waiting=1000)}, 8, Reason.QUEUE_DEPTH),
        (10, {"loads": loads(10, waiting=43)}, 10, Reason.INSIDE_TARGETS),  # within tolerance
        (10, {"loads": loads(10, waiting=1000)}, 16, Reason.QUEUE_DEPTH),
        (16, {"loads": loads(16, waiting=1000)}, 16, Reason.AT_MAXIMUM),
        (2, {"ttft": Ttft(2.0, 50)}, 4, Reason.TTFT),
        (2, {"ttft": Ttft(1.2, 50)}, 3, Reason.TTFT),
        (2, {"ttft": Ttft(1.05, 50)}, 2, Reason.INSIDE_TARGETS),
        (2, {"loads": loads(2, kv=1.0)}, 3, Reason.KV_CACHE),
        # the largest ratio decides, and gives its name
        (4, {"loads": loads(4, waiting=20, kv=1.0), "ttft": Ttft(1.6, 9)}, 7, Reason.TTFT),
        (4, {"loads": loads(4, waiting=32, kv=1.0), "ttft": Ttft(1.6, 9)}, 8, Reason.QUEUE_DEPTH),
    ],
)
def test_the_target_exceeded_most_decides(
    replicas: int, changes: dict[str, object], to: int, reason: Reason
) -> None:
    observation = seen(replicas, **{"ttft": Ttft(0.0, 0), **changes})
    decision = decide(ALL_TARGETS, History(), observation)
    assert (decision.to_replicas, decision.reason) == (to, reason)


@pytest.mark.parametrize(
    ("ready", "others", "to", "reason"),
    [
        # what is on its way is all that may be asked for
        (2, {"pending": 2}, 4, Reason.PODS_PENDING),
        (2, {"starting": 2}, 4, Reason.PODS_PENDING),
        (2, {"starting": 1, "pending": 1}, 4, Reason.PODS_PENDING),
        (3, {"starting": 1}, 6, Reason.QUEUE_DEPTH),
        (3, {"starting": 1, "pending": 2}, 4, Reason.PODS_PENDING),  # those of a rollout
        (2, {"pending": 1, "unschedulable": 1}, 4, Reason.PODS_UNSCHEDULABLE),
        (1, {"unschedulable": 3}, 4, Reason.PODS_UNSCHEDULABLE),
        (3, {"unschedulable": 1}, 6, Reason.QUEUE_DEPTH),
        (3, {"pending": 1, "draining": 5}, 6, Reason.QUEUE_DEPTH),
        (0, {"starting": 4}, 4, Reason.NO_READY_PODS),
    ],
)
def test_pods_on_their_way_are_waited_for(
    ready: int, others: dict[str, int], to: int, reason: Reason
) -> None:
    observation = seen(
        4,
        ready=ready,
        **others,
        loads=loads(ready, waiting=1000) if ready else (),
    )
    decision = decide(QUEUE_ONLY, History(), observation)
    assert (decision.to_replicas, decision.reason) == (to, reason)


def test_a_rollouts_surge_pods_are_on_their_way_too() -> None:
    observation = seen(2, ready=2, pending=1, loads=loads(2, waiting=12))
    assert decide(QUEUE_ONLY, History(), observation).to_replicas == 2


@pytest.mark.parametrize(
    ("max_step", "replicas", "to"), [(1, 4, 5), (3, 4, 7), (4, 4, 8), (9, 4, 8), (9, 1, 2)]
)
def test_a_step_up_is_the_smaller_of_doubling_and_max_step(
    max_step: int, replicas: int, to: int
) -> None:
    config = replace(QUEUE_ONLY, max_up_step=max_step)
    observation = seen(replicas, loads=loads(replicas, waiting=1000))
    decision = decide(config, History(), observation)
    assert (decision.to_replicas, decision.reason) == (to, Reason.QUEUE_DEPTH)


def test_a_small_step_up_waits_for_the_pod_that_it_ordered() -> None:
    config = replace(QUEUE_ONLY, max_up_step=1)
    observation = seen(5, ready=4, starting=1, loads=loads(4, waiting=1000))
    assert decide(config, History(), observation).reason is Reason.PODS_PENDING


def test_a_silent_pod_counts_as_idle_on_the_way_up() -> None:
    one_of_two = (PodLoad(20.0, 8.0, 0.5),)
    decision = decide(QUEUE_ONLY, History(), seen(2, loads=one_of_two))
    assert decision.to_replicas == 4
    assert decision.blindness is Reason.METRICS_PARTIAL
    half_full = (PodLoad(6.0, 8.0, 0.5),)
    assert decide(QUEUE_ONLY, History(), seen(2, loads=half_full)).to_replicas == 2


def test_ttft_waits_until_it_speaks_of_the_new_pods() -> None:
    config = ScalingConfig(max_replicas=16, ttft_seconds=1.0, settle_seconds=60)
    slow = Ttft(5.0, 100)
    history = History()
    for now, ready in ((0.0, 1), (5.0, 2)):
        observation = seen(2, now=now, ready=ready, pending=2 - ready, ttft=slow)
        observation = replace(observation, loads=loads(ready))
        decision = decide(config, history, observation)
        history = remember(config, history, decision, applied=False)
    assert decide(config, history, seen(2, now=64.0, ttft=slow)).reason is Reason.STABILIZING
    assert decide(config, history, seen(2, now=65.0, ttft=slow)).to_replicas == 4


def test_the_up_window_takes_the_least_that_was_asked_for_throughout() -> None:
    config = replace(QUEUE_ONLY, up_window_seconds=20.0)
    history = History()
    taken = []
    for index, waiting in enumerate((100, 24, 100, 100, 100)):
        observation = seen(4, now=index * INTERVAL, loads=loads(4, waiting=waiting))
        decision = decide(config, history, observation)
        history = remember(config, history, decision, applied=False)
        taken.append(decision.to_replicas)
    assert taken == [4, 4, 4, 4, 6]


# ---- down ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "changes", "to", "reason"),
    [
        (4, {}, 3, Reason.LOAD_FITS_FEWER),
        (1, {}, 1, Reason.INSIDE_TARGETS),
        # N/(N-1): 13 waiting on 4 pods is inside the target of 4 a pod, on 3 pods it is not
        (4, {"loads": loads(4, waiting=13)}, 4, Reason.INSIDE_TARGETS),
        (4, {"loads": loads(4, waiting=12)}, 3, Reason.LOAD_FITS_FEWER),
        (2, {"loads": loads(2, kv=0.5)}, 2, Reason.INSIDE_TARGETS),
        (2, {"loads": loads(2, kv=0.4)}, 1, Reason.LOAD_FITS_FEWER),
        (2, {"ttft": Ttft(0.6, 9)}, 2, Reason.INSIDE_TARGETS),
        (2, {"ttft": Ttft(0.4, 9)}, 1, Reason.LOAD_FITS_FEWER),
        # an unschedulable, starting or pending pod goes first and takes no capacity with it
        (4, {"ready": 2, "unschedulable": 2, "loads": loads(2, waiting=8)}, 3, "LoadFitsFewer"),
        (4, {"ready": 2, "starting": 2, "loads": loads(2, waiting=8)}, 3, "LoadFitsFewer"),
        (4, {"ready": 2, "pending": 2, "loads": loads(2, waiting=8)}, 3, "LoadFitsFewer"),
        (4, {"ready": 2, "unschedulable": 2, "loads": loads(2, waiting=8.5)}, 4, "InsideTargets"),
    ],
)
def test_one_replica_less_only_if_the_others_can_carry_it(
    replicas: int, changes: dict[str, object], to: int, reason: str
) -> None:
    history = quiet_history(ALL_TARGETS, replicas)
    observation = seen(replicas, **{"ttft": Ttft(0.0, 0), **changes})
    decision = decide(ALL_TARGETS, history, observation)
    assert (decision.to_replicas, decision.reason) == (to, reason)


@pytest.mark.parametrize(
    ("waiting", "kv", "ready", "to"),
    [
        (0, 0.0, 8, 5),
        (20, 0.0, 8, 5),  # 4 a pod on exactly five pods
        (21, 0.0, 8, 6),
        (0, 0.6, 8, 6),  # 4.8 caches' worth on 0.9 a pod: 5.3 pods
        (28.5, 0.0, 8, 8),
        (0, 0.0, 4, 5),  # four are not ready: they are among those that leave
        (12, 0.0, 3, 5),
        (13, 0.0, 3, 8),
    ],
)
def test_a_step_down_is_checked_for_exactly_the_replicas_that_remain(
    waiting: float, kv: float, ready: int, to: int
) -> None:
    config = replace(ALL_TARGETS, ttft_seconds=None, max_down_step=3)
    history = quiet_history(config, 8)
    observation = seen(
        8, ready=ready, unschedulable=8 - ready, loads=loads(ready, waiting=waiting, kv=kv)
    )
    assert decide(config, history, observation).to_replicas == to


def test_a_step_down_stops_at_the_minimum_and_at_the_windows_highest_need() -> None:
    config = replace(QUEUE_ONLY, max_down_step=10)
    assert (
        decide(replace(config, min_replicas=3), quiet_history(config, 8), seen(8)).to_replicas == 3
    )
    history = quiet_history(config, 8)
    busy = seen(8, now=9_995.0, loads=loads(8, waiting=24))
    history = remember(config, history, decide(config, history, busy), applied=False)
    assert decide(config, history, seen(8)).to_replicas == 6


def test_numbers_that_began_anew_may_raise_and_never_lower() -> None:
    history = quiet_history(QUEUE_ONLY, 4)
    decision = decide(QUEUE_ONLY, history, seen(4, doubtful=1))
    assert (decision.to_replicas, decision.reason) == (4, Reason.METRICS_PARTIAL)
    busy = seen(4, doubtful=1, loads=loads(4, waiting=100))
    assert decide(QUEUE_ONLY, history, busy).to_replicas == 8


def test_requests_that_run_on_full_pods_are_somebodys_queue_afterwards() -> None:
    config = QUEUE_ONLY
    history = quiet_history(config, 2)
    full = (PodLoad(0.0, 8.0, 0.1, slots=8),) * 2
    assert decide(config, history, seen(2, loads=full)).to_replicas == 2
    half_full = (PodLoad(0.0, 3.5, 0.1, slots=8),) * 2  # 7 of 8 seats of the other: no room left
    assert decide(config, history, seen(2, loads=half_full)).to_replicas == 2
    spare = (PodLoad(0.0, 3.0, 0.1, slots=8),) * 2
    assert decide(config, history, seen(2, loads=spare)).to_replicas == 1
    untold = (PodLoad(0.0, 8.0, 0.1),) * 2
    assert decide(replace(config, slots=8), history, seen(2, loads=untold)).to_replicas == 2
    assert decide(config, history, seen(2, loads=untold)).to_replicas == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loads": ()}, Reason.METRICS_MISSING),
        ({"loads": loads(3)}, Reason.METRICS_PARTIAL),
        ({"loads": (PodLoad(None, 0.0, 0.0),) * 4}, Reason.METRICS_PARTIAL),
        ({"loads": (*loads(3), PodLoad(0.0, 0.0, None))}, Reason.METRICS_PARTIAL),
        ({"ttft": None}, Reason.METRICS_PARTIAL),
        ({"ready": 0, "pending": 4, "loads": ()}, Reason.NO_READY_PODS),
    ],
)
def test_never_down_on_missing_data(changes: dict[str, object], reason: Reason) -> None:
    history = quiet_history(ALL_TARGETS, 4)
    observation = seen(4, **{"ttft": Ttft(0.0, 0), **changes})
    decision = decide(ALL_TARGETS, history, observation)
    assert (decision.to_replicas, decision.reason) == (4, reason)


def test_a_fresh_scrape_without_traffic_is_zero_and_not_missing() -> None:
    history = quiet_history(ALL_TARGETS, 4)
    decision = decide(ALL_TARGETS, history, seen(4, ttft=Ttft(0.0, 0)))
    assert decision.complete
    assert decision.inputs.ratios[Reason.TTFT] == 0.0
    assert decision.to_replicas == 3


def test_the_down_window_starts_with_the_operator() -> None:
    changes = list(rounds(QUEUE_ONLY, lambda now: seen(4, now=now), until=299))
    assert not any(decision.changed for decision in changes)
    assert {decision.reason for decision in changes} == {Reason.STABILIZING}


def test_a_gap_in_the_metrics_starts_the_down_window_anew() -> None:
    def dark_around(silent: range) -> float:
        for decision in rounds(
            QUEUE_ONLY,
            lambda now: seen(4, now=now, loads=() if now in silent else loads(4)),
            until=2000,
        ):
            if decision.changed:
                return decision.time
        raise AssertionError("never scaled down")

    assert dark_around(range(0)) == 300
    assert dark_around(range(200, 206)) == 300  # two lost scrapes are no gap
    assert dark_around(range(200, 216)) == 520  # the metrics came back at 220


def test_a_need_within_the_window_holds_replicas() -> None:
    """Bursts every four minutes: the window of five never runs out between them."""
    config = QUEUE_ONLY

    def world(now: float) -> Observation:
        return seen(4, now=now, loads=loads(4, waiting=16 if now % 240 == 0 else 0))

    assert not any(decision.changed for decision in rounds(config, world, until=3000))
    last_need = 600

    def quiet_later(now: float) -> Observation:
        return seen(4, now=now, loads=loads(4, waiting=16 if now <= last_need else 0))

    down = next(decision for decision in rounds(config, quiet_later, 3000) if decision.changed)
    assert down.time == last_need + config.down_window_seconds + INTERVAL


def test_steps_down_keep_their_distance() -> None:
    replicas = 4
    times = []
    history = History()
    for tick in range(200):
        decision = decide(QUEUE_ONLY, history, seen(replicas, now=tick * INTERVAL))
        history = remember(QUEUE_ONLY, history, decision, applied=True)
        if decision.changed:
            times.append(decision.time)
        replicas = decision.to_replicas
    assert replicas == 1
    assert times == [300, 360, 420]


def test_replicas_set_by_another_hand_hold_for_a_window() -> None:
    history = quiet_history(QUEUE_ONLY, 1)
    times = []
    replicas = 3
    for tick in range(100):
        decision = decide(QUEUE_ONLY, history, seen(replicas, now=10_000 + tick * INTERVAL))
        history = remember(QUEUE_ONLY, history, decision, applied=True)
        if decision.changed:
            times.append(decision.time)
        replicas = decision.to_replicas
    assert times == [10_300, 10_360]


# ---- the user's word ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "to", "reason"),
    [
        (1, 6, Reason.BELOW_MINIMUM),
        (20, 8, Reason.ABOVE_MAXIMUM),
        (0, 0, Reason.PAUSED),
    ],
)
def test_min_max_and_zero_hold_at_once_and_without_metrics(
    replicas: int, to: int, reason: Reason
) -> None:
    config = ScalingConfig(min_replicas=6, max_replicas=8)
    decision = decide(config, History(), seen(replicas, ready=0, loads=()))
    assert (decision.to_replicas, decision.reason) == (to, reason)


def test_a_schedule_that_is_not_understood_forbids_steps_down_only() -> None:
    config = replace(QUEUE_ONLY, schedule_errors=("cron must be five cron fields, got 'x'",))
    decision = decide(config, quiet_history(config, 4), seen(4))
    assert (decision.to_replicas, decision.reason) == (4, Reason.INVALID_SCHEDULE)
    busy = seen(4, loads=loads(4, waiting=100))
    assert decide(config, History(), busy).to_replicas == 8
    assert decide(config, History(), seen(20)).to_replicas == 16


def test_a_stalled_loop_takes_nothing_for_quiet_while_it_slept() -> None:
    later = seen(4, now=10_100.0)
    assert decide(QUEUE_ONLY, quiet_history(QUEUE_ONLY, 4), later).to_replicas == 4


def test_a_dry_run_decides_the_same_and_remembers_no_change() -> None:
    config = replace(QUEUE_ONLY, dry_run=True)
    observation = seen(1, loads=loads(1, waiting=100))
    decision = decide(config, History(), observation)
    assert (decision.to_replicas, decision.dry_run) == (2, True)
    history = remember(config, History(), decision, applied=False)
    assert history.replicas == 1
    assert history.changed_last is None


def rounds(config: ScalingConfig, world: object, until: int) -> Iterator[Decision]:
    """Decisions of one operator that never writes, every INTERVAL seconds."""
    history = History()
    for now in range(0, until + 1, int(INTERVAL)):
        decision = decide(config, history, world(now))  # type: ignore[operator]
        history = remember(config, history, decision, applied=False)
        yield decision
