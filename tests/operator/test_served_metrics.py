"""What may be answered to an autoscaler: a complete, fresh number or an error."""

from dataclasses import replace
from typing import Any

import pytest

from quire_operator import served_metrics
from quire_operator.api import decode_spec
from quire_operator.names import Key
from quire_operator.readings import Reading, Readings
from quire_operator.served_metrics import (
    KV_CACHE,
    QUEUE_DEPTH,
    TTFT_P95,
    NoReading,
    quantity,
    targets,
    value,
)
from quire_operator.values import quantity as parse

CHAT = Key("default", "chat")
READING = Reading(
    at=100.0,
    wall=1_700_000_000.0,
    ready=2,
    complete=True,
    waiting=3.0,
    running=8.0,
    kv_cache_utilization=0.25,
    ttft_p95_seconds=0.0,
)


def readings(**changes: Any) -> Readings:
    found = Readings()
    found.put(CHAT, replace(READING, **changes))
    return found


@pytest.mark.parametrize(("metric", "number"), [(QUEUE_DEPTH, 3), (KV_CACHE, 0.25), (TTFT_P95, 0)])
def test_a_complete_reading_is_answered(metric: str, number: float) -> None:
    assert value(readings(), CHAT, metric, 101.0, 5.0) == (number, READING)


@pytest.mark.parametrize(
    ("changes", "now", "words"),
    [
        ({"complete": False, "missing": ("pod a timed out",)}, 101.0, "pod a timed out"),
        ({"complete": False}, 101.0, "a target's metric is missing"),
        ({"complete": False, "ready": 0}, 101.0, "no pod is ready"),
        ({"waiting": None}, 101.0, "no quire_queue_depth"),
        ({}, 115.1, "too old"),
    ],
)
def test_anything_less_is_an_error(changes: dict[str, object], now: float, words: str) -> None:
    with pytest.raises(NoReading, match=words):
        value(readings(**changes), CHAT, QUEUE_DEPTH, now, 5.0)


def test_without_a_first_token_the_queue_is_answered_all_the_same() -> None:
    """An HPA grows by the metrics that it gets, and shrinks by none while one is an error."""
    found = readings(complete=False, loads_complete=True, ttft_p95_seconds=None)
    assert value(found, CHAT, QUEUE_DEPTH, 101.0, 5.0)[0] == 3
    assert value(found, CHAT, KV_CACHE, 101.0, 5.0)[0] == 0.25
    with pytest.raises(NoReading, match="not complete"):
        value(found, CHAT, TTFT_P95, 101.0, 5.0)


def test_three_rounds_are_not_too_old() -> None:
    assert value(readings(), CHAT, QUEUE_DEPTH, 115.0, 5.0)[0] == 3


def test_who_was_never_read_has_no_number() -> None:
    with pytest.raises(NoReading, match="not been read yet"):
        value(Readings(), CHAT, QUEUE_DEPTH, 101.0, 5.0)


def test_an_error_has_no_figure_that_moves() -> None:
    """An HPA copies it into its status, and we copy that into ours."""
    words = set()
    for now in (120.0, 130.0):
        with pytest.raises(NoReading) as refused:
            served_metrics.fresh(readings(), CHAT, now, 5.0)
        words.add(str(refused.value))
    assert len(words) == 1


def test_targets_are_those_that_are_set() -> None:
    model = {"uri": "hf://org/model"}
    spec = decode_spec({"model": model, "scaling": {"targets": {"ttftSeconds": 1.5}}})
    assert [(t.metric, t.value, t.type) for t in targets(spec)] == [
        (QUEUE_DEPTH, 4.0, "AverageValue"),
        (TTFT_P95, 1.5, "Value"),
        (KV_CACHE, 0.9, "Value"),
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (4.0, "4"), (0.9, "900m"), (1.5, "1500m"), (0.0004, "0"), (12345.678, "12345678m")],
)
def test_quantities(number: float, text: str) -> None:
    assert quantity(number) == text
    assert parse(text) == pytest.approx(round(number, 3))
