"""The numbers of a summary, each worked out by hand."""

from typing import Any

import pytest

from quire_operator.simulator import summary
from quire_operator.simulator.engine_model import Outcome, Request
from quire_operator.simulator.scenario_file import decode
from quire_operator.simulator.simulation import Change, Record, Sample
from quire_operator.simulator.summary import (
    direction_changes,
    percentile,
    summarize,
    ttft_p95_over_time,
)


def sample(seconds: float, **changes: Any) -> Sample:
    plain: dict[str, Any] = {
        "replicas": 1,
        "ready": 1,
        "starting": 0,
        "unschedulable": 0,
        "draining": 0,
        "waiting": 0,
        "running": 0,
        "held": 0,
        "kv_utilization": 0.0,
        "reason": "Active",
    }
    return Sample(seconds=seconds, **{**plain, **changes})


def answered(arrived: float, ttft: float) -> Request:
    return Request(
        arrived, 1, 1, first_token=arrived + ttft, finished=arrived + ttft, outcome=Outcome.ANSWERED
    )


def change(seconds: float, before: int, after: int) -> Change:
    return Change(seconds, before, after, "QueueDepth: words")


@pytest.fixture
def record(raw: dict[str, Any]) -> Record:
    """A minute and a half: samples at 0, 30, 60, 90."""
    raw.update(durationSeconds=90, intervalSeconds=30)
    raw["scaling"] = {"targets": {"queueDepth": 4, "ttftSeconds": 1}}
    return Record(
        scenario=decode(raw),
        requests=(
            answered(1, 0.2),
            answered(2, 0.4),
            answered(40, 3.0),
            Request(50, 1, 1, outcome=Outcome.CUT),
            Request(89.5, 1, 1),  # too late to be due
        ),
        samples=(
            sample(0),
            sample(30, waiting=5, replicas=2, starting=1),  # the queue's target is exceeded
            sample(60, replicas=2, ready=2, waiting=3, held=2, reason="MetricsPartial"),
            sample(90, draining=1),
        ),
        changes=(change(30, 1, 2), change(90, 2, 1)),
    )


def test_numbers(record: Record) -> None:
    found = summarize(record)
    assert (found.requests.total, found.requests.answered) == (5, 3)
    assert (found.requests.cut, found.requests.unfinished) == (1, 1)
    assert found.ttft_seconds.p50 == pytest.approx(0.4)
    assert found.ttft_seconds.p99 == pytest.approx(3.0)
    assert found.share_above_target == 0.5  # the slow and the cut one, of the four that were due
    assert found.seconds_above_target == 90  # 30 by the queue, 60 and 90 by TTFT
    assert found.replica_hours == pytest.approx((1 + 2 + 2) * 30 / 3600)
    assert (found.highest_replicas, found.max_queue) == (2, 5)
    assert (found.scale_events, found.direction_changes) == (2, 1)
    assert found.reasons == {"QueueDepth": 2}
    assert found.seconds_by_condition == {"Active": 90, "MetricsPartial": 30}


def test_p95_looks_back_one_minute(record: Record) -> None:
    assert ttft_p95_over_time(record) == [None, pytest.approx(0.4), pytest.approx(3), 3]


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.95, 4.0), (0.0, 1.0)]
)
def test_percentiles(fraction: float, expected: float) -> None:
    assert percentile(fraction, [1.0, 2.0, 3.0, 4.0]) == expected
    assert percentile(fraction, []) is None


def test_directions() -> None:
    steps = [change(0, 1, 2), change(1, 2, 4), change(2, 4, 3), change(3, 3, 2), change(4, 2, 3)]
    assert direction_changes(steps) == 2
    assert direction_changes(steps[:1]) == direction_changes([]) == 0


def test_nothing_happened(record: Record) -> None:
    found = summarize(Record(record.scenario, (), (sample(0),), ()))
    assert found.ttft_seconds.p95 is None
    assert found.share_above_target == 0
    assert "p95 -" in summary.text(found)


def test_text_names_every_outcome_and_change(record: Record) -> None:
    text = summary.text(summarize(record))
    assert "5, 3 answered, 1 cut, 1 unfinished" in text
    assert "50.0% later than the target" in text
    assert "30    1 -> 2   QueueDepth: words" in text
