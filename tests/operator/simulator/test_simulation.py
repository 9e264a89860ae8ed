"""The service around the scaler: who starts, drains, crashes; what is lost and what never is."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from quire_operator.simulator.engine_model import Outcome
from quire_operator.simulator.load import drawn
from quire_operator.simulator.scenario_file import decode
from quire_operator.simulator.simulation import Record, Sample, run

Change = Callable[..., Record]


@pytest.fixture
def simulated(raw: dict[str, Any]) -> Change:
    """Runs the plain scenario with the given top-level keys changed."""

    def simulate(**changes: Any) -> Record:
        scenario = decode({**raw, **changes})
        return run(scenario, drawn(scenario))

    return simulate


def constant(per_second: float, **more: Any) -> dict[str, Any]:
    phase = {"kind": "constant", "durationSeconds": 600, "perSecond": per_second, **more}
    return {"phases": [phase]}


def outcomes(record: Record) -> Counter[Outcome]:
    return Counter(request.outcome for request in record.requests)


def at(record: Record, seconds: float) -> Sample:
    return next(sample for sample in record.samples if sample.seconds == seconds)


def test_the_same_seed_the_same_events(simulated: Change) -> None:
    load = constant(6)
    first, again = simulated(load=load, seed=5), simulated(load=load, seed=5)
    assert first.changes
    assert (first.samples, first.changes) == (again.samples, again.changes)
    assert [r.first_token for r in first.requests] == [r.first_token for r in again.requests]
    assert simulated(load=load, seed=6).samples != first.samples


def test_every_request_is_accounted_for(simulated: Change) -> None:
    record = simulated(
        load=constant(6),
        scaling={"maxReplicas": 3},
        faults=[{"kind": "podCrash", "atSeconds": 300}],
    )
    counts = outcomes(record)
    assert counts[Outcome.CUT] > 0
    assert counts[Outcome.ANSWERED] + counts[Outcome.CUT] + counts[Outcome.UNFINISHED] == len(
        record.requests
    )
    for request in record.requests:
        assert (request.finished is not None) == (request.outcome is Outcome.ANSWERED)


def test_replicas_stand_where_they_began_without_load(simulated: Change) -> None:
    record = simulated(load=constant(0), replicas=1)
    assert record.changes == ()
    assert {sample.ready for sample in record.samples} == {1}


def test_a_new_pod_starts_for_its_time_and_then_serves(simulated: Change) -> None:
    record = simulated(load=constant(0), replicas=1, scaling={"minReplicas": 2})
    assert [(c.seconds, c.after, c.reason) for c in record.changes] == [(0, 2, "BelowMinReplicas")]
    assert (at(record, 25).ready, at(record, 25).starting) == (1, 1)
    assert (at(record, 30).ready, at(record, 30).starting) == (2, 0)


def test_a_slow_start_takes_so_many_times_as_long(simulated: Change) -> None:
    slow = {"kind": "slowStart", "fromSeconds": 0, "toSeconds": 10, "factor": 4}
    record = simulated(load=constant(0), replicas=1, scaling={"minReplicas": 2}, faults=[slow])
    assert at(record, 115).starting == 1
    assert at(record, 120).ready == 2


def test_nodes_take_what_they_have_room_for(simulated: Change) -> None:
    shortage = {"kind": "gpuShortage", "fromSeconds": 0, "toSeconds": 200, "maxPods": 2}
    record = simulated(load=constant(0), replicas=1, scaling={"minReplicas": 4}, faults=[shortage])
    late = at(record, 195)
    assert (late.ready, late.starting, late.unschedulable) == (2, 0, 2)
    assert (at(record, 200).starting, at(record, 230).ready) == (2, 4)


@pytest.mark.parametrize(("drain_seconds", "is_cut"), [(10, True), (600, False)])
def test_a_leaving_pod_answers_what_it_has_within_its_time(
    simulated: Change, drain_seconds: float, is_cut: bool
) -> None:
    """Answers of more than 200 s, and replicas above the maximum a few seconds after the start."""
    record = simulated(
        load={
            "phases": [{"kind": "burst", "requests": 40, "durationSeconds": 2}],
            "lengths": {"prompt": 10, "answer": 10_000},
        },
        replicas=4,
        start="2026-01-05T06:59:50Z",
        scaling={
            "minReplicas": 4,
            "scaleDown": {"stabilizationSeconds": 60},
            "schedules": [{"cron": "0 7 * * *", "minReplicas": 1}],
        },
        durationSeconds=900,
        drainSeconds=drain_seconds,
    )
    lowered = next(change for change in record.changes if change.after < change.before)
    assert at(record, lowered.seconds).draining == 1
    gone = next(s for s in record.samples if s.seconds > lowered.seconds and not s.draining)
    assert gone.seconds - lowered.seconds <= drain_seconds + 5
    assert (outcomes(record)[Outcome.CUT] > 0) == is_cut


def test_a_crash_restarts_the_container_under_the_same_name(simulated: Change) -> None:
    record = simulated(load=constant(1), faults=[{"kind": "podCrash", "atSeconds": 102}])
    down = at(record, 105)
    assert (down.ready, down.starting, down.reason) == (0, 1, "NoReadyPods")
    assert at(record, 135).ready == 1
    refused = [r.arrived for r in record.requests if r.outcome is Outcome.REFUSED]
    assert refused
    assert 102 <= min(refused) <= max(refused) < 132
    assert record.changes == ()


def test_a_gateway_holds_what_would_be_refused(simulated: Change) -> None:
    crash = [{"kind": "podCrash", "atSeconds": 102}]
    record = simulated(load=constant(1), faults=crash, gateway=True)
    assert outcomes(record)[Outcome.REFUSED] == 0
    assert at(record, 130).held > 0
    assert at(record, 135).held == 0
    held = [r for r in record.requests if 103 < r.arrived < 131 and r.first_token is not None]
    assert all(r.first_token is not None and r.first_token >= 132 for r in held)


def test_silent_pods_are_the_oldest(simulated: Change) -> None:
    outage = {"kind": "metricsOutage", "fromSeconds": 100, "toSeconds": 200, "pods": 1}
    record = simulated(load=constant(1), replicas=2, scaling={"minReplicas": 2}, faults=[outage])
    reasons = Counter(s.reason for s in record.samples if 110 <= s.seconds < 200)
    assert set(reasons) == {"MetricsPartial"}
    assert at(record, 200).reason == at(record, 95).reason


@pytest.mark.parametrize("router", ["least-loaded", "random"])
def test_only_chance_lets_one_queue_while_others_have_room(simulated: Change, router: str) -> None:
    """As many endless requests as four pods have seats."""
    record = simulated(
        load={
            "phases": [{"kind": "burst", "requests": 128, "durationSeconds": 2}],
            "lengths": {"prompt": 10, "answer": 1500},
        },
        replicas=4,
        router=router,
        scaling={"minReplicas": 4},
        durationSeconds=10,
    )
    assert (at(record, 5).waiting == 0) == (router == "least-loaded")


def test_asleep_and_awake(simulated: Change) -> None:
    """Idle for a minute: to zero. The next request is held, wakes the service, and is answered."""
    record = simulated(
        load=constant(0.5, startSeconds=300, durationSeconds=60),
        scaling={"idleSecondsToZero": 60},
        gateway=True,
    )
    assert [(c.before, c.after) for c in record.changes[:2]] == [(1, 0), (0, 1)]
    assert record.changes[0].seconds >= 60
    first = record.requests[0]
    assert record.changes[1].seconds - first.arrived <= 5
    assert outcomes(record) == {Outcome.ANSWERED: len(record.requests)}
    assert first.ttft_seconds is not None
    assert 30 < first.ttft_seconds < 36


def test_schedules_follow_the_scenarios_own_time(simulated: Change) -> None:
    """08:00 in Berlin is 07:00 UTC in winter, five minutes after the start."""
    record = simulated(
        load=constant(0),
        start="2026-01-05T06:55:00Z",
        scaling={
            "schedules": [
                {"cron": "0 8 * * 1-5", "minReplicas": 3, "timeZone": "Europe/Berlin"},
                {"cron": "0 20 * * *", "minReplicas": 1},
            ]
        },
    )
    assert [(c.seconds, c.before, c.after) for c in record.changes] == [(300, 1, 3)]
