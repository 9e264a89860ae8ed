"""`kubectl quire simulate` end to end."""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from quire_operator.kubectl import app


@pytest.fixture
def scenario(raw: dict[str, Any], tmp_path: Path) -> Path:
    """Ten minutes that make a service grow, with every kind of fault."""
    raw["load"]["phases"][0]["perSecond"] = 5
    raw["scaling"] = {"maxReplicas": 4, "targets": {"ttftSeconds": 2}}
    raw["faults"] = [
        {"kind": "metricsOutage", "fromSeconds": 100, "toSeconds": 150, "pods": 1},
        {"kind": "gpuShortage", "fromSeconds": 0, "toSeconds": 200, "maxPods": 2},
        {"kind": "slowStart", "fromSeconds": 200, "toSeconds": 300, "factor": 2},
        {"kind": "podCrash", "atSeconds": 400},
    ]
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def simulate(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    return result.exit_code, result.output


def test_summary(scenario: Path) -> None:
    code, output = simulate(scenario)
    assert code == 0, output
    assert output.splitlines()[0].startswith("requests ")
    assert "1 -> 2" in output
    assert "QueueDepth: " in output


def test_json(scenario: Path) -> None:
    code, output = simulate(scenario, "--json")
    assert code == 0, output
    found = json.loads(output)
    requests = found["requests"]
    assert requests["total"] > 2000
    assert requests["total"] == sum(n for name, n in requests.items() if name != "total")
    assert found["ttftSeconds"]["p50"] < found["ttftSeconds"]["p99"]
    assert 0 < found["shareAboveTarget"] < 1
    assert found["scaleEvents"] == len(found["events"]) > 0
    assert found["events"][0]["before"] == 1
    assert found["highestReplicas"] <= 4
    assert json.loads(simulate(scenario, "--json")[1]) == found


def test_plot(scenario: Path, tmp_path: Path) -> None:
    pictures = []
    for name in ("one.png", "two.png"):
        code, output = simulate(scenario, "--out", tmp_path / name)
        assert code == 0, output
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0].startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", pictures[0][16:24]) == (1000, 720)
    assert pictures[0] == pictures[1], "the same simulation, another picture"


def test_a_plot_of_nothing(raw: dict[str, Any], tmp_path: Path) -> None:
    """No request, no pod: empty axes, no traceback."""
    raw["load"]["phases"][0]["perSecond"] = 0
    raw["replicas"] = 0
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(raw))
    code, output = simulate(tmp_path / "none.yaml", "--out", tmp_path / "none.png")
    assert code == 0, output
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_a_bad_scenario_is_told_in_one_line(scenario: Path) -> None:
    scenario.write_text(scenario.read_text().replace("maxNumSeqs: 32", "maxNumSeqs: none"))
    code, output = simulate(scenario)
    assert code == 2
    assert output.count("\n") == 1
    assert "engine.maxNumSeqs: Expected `int`, got 'none'" in output


@pytest.mark.parametrize("name", ["plot.svg", "nowhere/plot.png"])
def test_a_plot_that_cannot_be_written_is_refused_at_once(
    scenario: Path, tmp_path: Path, name: str
) -> None:
    code, output = simulate(scenario, "--out", tmp_path / name)
    assert code == 2
    assert "--out must be the path of a PNG in a folder that exists" in output


def test_without_matplotlib(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output = simulate(scenario, "--out", tmp_path / "plot.png")
    assert code == 2
    assert "pip install 'quire[operator,simulate]'" in output
    assert simulate(scenario)[0] == 0  # figures need no plot
