"""A few hundred requests of `make soak`'s, so that it works when it is wanted."""

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"
GROWTH_MIB = 32  # so few requests do not warm a process up


def test_a_short_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    command = (str(SOAK), "--requests", "300", "--seed", "7", "--growth-mib", str(GROWTH_MIB))
    run = subprocess.run(
        [sys.executable, *command, "--results", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads((tmp_path / "soak.json").read_text())
    assert told["failures"] == []
    assert sum(told["ends"].values()) == 300
    assert {"answered", "refused", "left at once", "left while it streams"} <= told["ends"].keys()
    assert told["preemptions"] > 0, "the cache is to be too small"
    assert "| requests | 300 |" in (tmp_path / "soak.md").read_text()
