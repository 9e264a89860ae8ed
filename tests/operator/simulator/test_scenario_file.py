"""What a scenario file may say, and how a bad one is refused: path, rule, value, way out."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_operator.errors import ScenarioError
from quire_operator.simulator.load import Arrival
from quire_operator.simulator.scenario import LogNormal, SinePhase
from quire_operator.simulator.scenario_file import decode, read


def changed(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one value put at a path such as `engine.maxNumSeqs` or `load.phases.0.kind`."""
    copy = deepcopy(raw)
    *folders, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    at: Any = copy
    for name in folders:
        at = at[name] if isinstance(name, int) else at.setdefault(name, {})
    at[last] = value
    return copy


def write(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_defaults(raw: dict[str, Any]) -> None:
    scenario = decode(raw)
    assert scenario.scaling.mode == "builtin"
    assert scenario.scaling.targets.queue_depth == 4
    assert (scenario.first_replicas, scenario.interval_seconds, scenario.router) == (1, 5, "random")
    assert decode(changed(raw, "scaling.minReplicas", 3)).first_replicas == 3
    assert decode(changed(raw, "replicas", 0)).first_replicas == 0


def test_kinds_are_told_apart(raw: dict[str, Any]) -> None:
    raw["load"] = {
        "phases": [
            {
                "kind": "sine",
                "durationSeconds": 60,
                "meanPerSecond": 2,
                "amplitudePerSecond": 1,
                "periodSeconds": 60,
            }
        ],
        "lengths": {"prompt": 100, "answer": {"kind": "lognormal", "median": 100, "p95": 300}},
    }
    load = decode(raw).load
    assert isinstance(load.phases[0], SinePhase)
    assert load.lengths.prompt == 100
    assert isinstance(load.lengths.answer, LogNormal)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("durationSecond", 5, ["durationSecond: unknown keys are refused", "correct its spelling"]),
        ("engine.slots", 5, ["engine.slots: unknown keys are refused", "remove it"]),
        ("scaling.targets.queue", 5, ["scaling.targets.queue: ", "kvCacheUtilization, queueDepth"]),
        ("scaling.minReplica", 5, ["scaling.minReplica: unknown", "minReplicas"]),
        ("durationSeconds", "an hour", ["durationSeconds: Expected", "got 'an hour'", "README"]),
        ("engine.maxNumSeqs", 0, ["engine.maxNumSeqs: Expected", ">= 1", "got 0", "README"]),
        ("scaling.maxReplicas", 0, ["scaling.maxReplicas: Expected", ">= 1", "got 0"]),
        (
            "scaling.minReplicas",
            9,
            ["scaling.minReplicas, ", "<= scaling.maxReplicas (4)", "got 9"],
        ),
        ("scaling.mode", "hpa", ["scaling.mode must be builtin", "got hpa", "leave it out"]),
        ("load.phases.0.kind", "wave", ["load.phases[", "wave"]),
        ("load.phases.0.perSecond", -1, ["load.phases[", ">= 0"]),
        ("load.trace", "x.csv", ["load: must hold either phases or trace, got both"]),
        ("load.phases", [], ["load: must hold either phases or trace, got neither"]),
        ("engine.decodeStepSeconds", {}, ["engine: decodeStepSeconds must hold", "got none"]),
        ("engine.decodeStepSeconds", {0: 0.2}, ["engine.decodeStepSeconds: Expected", ">= 1"]),
        ("engine.decodeStepSeconds", {1: 0.2, 8: 0.1}, ["engine: ", "must not fall", "measure"]),
        (
            "engine.tokensPerStep",
            16,
            ["engine: tokensPerStep must be >= maxNumSeqs (32)", "got 16"],
        ),
        (
            "engine.startupSeconds",
            {"kind": "uniform", "min": 9, "max": 3},
            ["engine.startupSeconds: max must be >= min (9), got 3"],
        ),
        (
            "faults",
            [{"kind": "gpuShortage", "fromSeconds": 9, "toSeconds": 3, "maxPods": 1}],
            ["faults[", "toSeconds must be >= fromSeconds (9), got 3"],
        ),
        ("faults", [{"kind": "fire"}], ["faults[", "fire"]),
        ("start", "2026-01-05T00:00:00", ["start: Expected", "timezone"]),
        ("router", "sticky", ["router: ", "sticky"]),
    ],
)
def test_what_is_wrong_is_refused_with_a_way_out(
    raw: dict[str, Any], tmp_path: Path, path: str, value: object, words: list[str]
) -> None:
    file = write(tmp_path, changed(raw, path, value))
    with pytest.raises(ScenarioError) as refused:
        read(file)
    message = str(refused.value)
    assert message.startswith(f"{file}: ")
    for word in words:
        assert word in message, message
    assert ";" in message, "no way out"


@pytest.mark.parametrize("missing", ["durationSeconds", "scaling", "engine", "load"])
def test_what_is_missing_is_named(raw: dict[str, Any], missing: str) -> None:
    del raw[missing]
    with pytest.raises(ScenarioError, match=f"the scenario: must have the key {missing}"):
        decode(raw)


@pytest.mark.parametrize("text", ["", "- a list", "7"])
def test_only_a_mapping_is_a_scenario(tmp_path: Path, text: str) -> None:
    (tmp_path / "scenario.yaml").write_text(text)
    with pytest.raises(ScenarioError, match="must be a mapping"):
        read(tmp_path / "scenario.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ScenarioError, match="must be YAML"):
        read(tmp_path / "bad.yaml")


# ---- traces ----

HEAD = "seconds,prompt_tokens,answer_tokens\n"


@pytest.fixture
def traced(raw: dict[str, Any], tmp_path: Path) -> Path:
    """A scenario that replays trace.csv beside it."""
    raw["load"] = {"trace": "trace.csv"}
    return write(tmp_path, raw)


def test_a_trace_is_replayed_in_order_up_to_the_end(traced: Path) -> None:
    (traced.parent / "trace.csv").write_text(HEAD + "7.5,10,20\n0,100,50\n600,1,1\n")
    _scenario, arrivals = read(traced)
    assert arrivals == [Arrival(0.0, 100, 50), Arrival(7.5, 10, 20)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,prompt,answer\n1,2,3\n", "the first line must be seconds,prompt_tokens"),
        ("", "got nothing"),
        (HEAD, "at least one request"),
        (HEAD + "1,2,3\n2,0,3\n", "line 3"),
        (HEAD + "-1,2,3\n", "line 2"),
        (HEAD + "1,2\n", "line 2"),
        (HEAD + "1,2,many\n", "got 1,2,many"),
    ],
)
def test_bad_traces_are_refused(traced: Path, text: str, words: str) -> None:
    (traced.parent / "trace.csv").write_text(text)
    with pytest.raises(ScenarioError, match=r"trace\.csv") as refused:
        read(traced)
    assert words in str(refused.value)


def test_a_trace_that_is_not_there(traced: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        read(traced)
