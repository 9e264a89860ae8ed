"""What the scenarios in the docs are there to show, as assertions."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from quire_operator.simulator import scenario_file
from quire_operator.simulator.scenario import Scenario
from quire_operator.simulator.simulation import Change, Record, Sample, run
from quire_operator.simulator.summary import direction_changes

DOCS = Path(__file__).parents[3] / "operator" / "docs"
NAMES = sorted(path.stem for path in (DOCS / "scenarios").glob("*.yaml"))
WINDOW = 300.0  # scaleDown.stabilizationSeconds of all of them


@cache
def simulated(name: str) -> Record:
    return run(*scenario_file.read(DOCS / "scenarios" / f"{name}.yaml"))


def ups(record: Record) -> list[Change]:
    return [change for change in record.changes if change.after > change.before]


def downs(record: Record) -> list[Change]:
    return [change for change in record.changes if change.after < change.before]


def at(record: Record, seconds: float) -> Sample:
    return next(sample for sample in record.samples if sample.seconds == seconds)


def between(record: Record, start: float, end: float) -> list[Sample]:
    return [sample for sample in record.samples if start <= sample.seconds < end]


@pytest.mark.parametrize("name", NAMES)
def test_within_bounds_at_most_doubling_and_no_change_of_direction_twice_a_window(
    name: str,
) -> None:
    record = simulated(name)
    scaling = record.scenario.scaling
    assert {sample.replicas for sample in record.samples} <= set(
        range(scaling.min_replicas, scaling.max_replicas + 1)
    )
    for change in ups(record):
        assert change.after <= 2 * at(record, change.seconds).ready
    turns = [
        after.seconds
        for before, after in pairwise(record.changes)
        if (after.after > after.before) != (before.after > before.before)
    ]
    assert all(later - earlier >= WINDOW for earlier, later in pairwise(turns))


def test_burst_settles_within_three_steps_and_goes_back() -> None:
    record = simulated("burst")
    assert 1 <= len(ups(record)) <= 3
    assert all(300 <= change.seconds < 420 for change in ups(record))
    assert direction_changes(record.changes) == 1
    assert max(sample.queue for sample in between(record, 300, 900)) > 100
    assert max(sample.queue for sample in between(record, 700, 900)) <= 4
    assert all(change.before - change.after == 1 for change in downs(record))
    gaps = [after.seconds - before.seconds for before, after in pairwise(downs(record))]
    assert min(gaps) >= 60
    assert record.samples[-1].replicas == 1


def test_daily_follows_both_ways() -> None:
    record = simulated("daily")
    assert record.samples[0].replicas == record.samples[-1].replicas == 1
    noon = between(record, 2400, 3000)
    assert min(sample.replicas for sample in noon) >= 4
    assert len(ups(record)) >= 3
    assert len(downs(record)) >= 3
    morning, evening = at(record, 1300).replicas, at(record, 4100).replicas
    assert 1 < morning < max(sample.replicas for sample in noon)
    assert 1 < evening < max(sample.replicas for sample in noon)


def test_nothing_shrinks_in_a_metrics_outage_nor_in_the_window_after_it() -> None:
    record = simulated("metrics-outage")
    for start, end, reason in [(660, 1500, "MetricsMissing"), (2550, 3300, "MetricsPartial")]:
        blind = between(record, start, end)
        assert len({sample.replicas for sample in blind}) == 1
        assert {sample.reason for sample in blind[2:]} == {reason}
        assert sum(sample.running for sample in blind) / len(blind) < 60  # two pods would do
        following = next(change for change in downs(record) if change.seconds >= start)
        assert following.seconds >= end + WINDOW - record.scenario.interval_seconds
    assert record.samples[-1].replicas == 1


def test_a_shortage_orders_nothing_past_the_pods_on_their_way() -> None:
    record = simulated("gpu-shortage")
    for change in ups(record):
        seen = at(record, change.seconds - record.scenario.interval_seconds)
        assert change.after > seen.ready + seen.starting
        assert change.after <= 2 * at(record, change.seconds).ready
    short = between(record, 300, 1200)
    assert {sample.ready for sample in short} == {3}
    assert {sample.replicas for sample in short} == {6}  # twice what is ready, whatever it lasts
    assert "PodsUnschedulable" in {sample.reason for sample in short}
    assert max(sample.ready for sample in between(record, 1200, 1800)) >= 6
    assert record.samples[-1].replicas == 1


# ---- the docs ----


def test_every_scenario_is_shown() -> None:
    readme = (DOCS / "README.md").read_text()
    assert len(NAMES) >= 4
    for name in NAMES:
        assert f"]({name}.png)" in readme
        assert f"(scenarios/{name}.yaml)" in readme
        png = (DOCS / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) <= 150 * 1024
    assert {path.stem for path in DOCS.glob("*.png")} == set(NAMES)


def keys(kind: msgspec.inspect.Type) -> Iterator[str]:
    """Every key of a scenario file; spec.scaling's are documented by the resource."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            yield from keys(inner)
        case msgspec.inspect.StructType(cls=cls, fields=fields) if "simulator" in cls.__module__:
            if isinstance(kind.tag, str):
                yield kind.tag
            for each in fields:
                yield each.encode_name
                yield from keys(each.type)
        case msgspec.inspect.ListType(item_type=inner):
            yield from keys(inner)
        case msgspec.inspect.UnionType(types=types):
            for inner in types:
                yield from keys(inner)


def test_every_key_is_documented() -> None:
    documented = set(re.findall(r"[A-Za-z0-9]+", (DOCS / "README.md").read_text()))
    known = set(keys(msgspec.inspect.type_info(Scenario)))
    assert {"durationSeconds", "maxPods", "lognormal"} <= known
    assert known <= documented
