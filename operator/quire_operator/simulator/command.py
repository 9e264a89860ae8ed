"""`kubectl quire simulate`: scenario in, summary and plot out."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import msgspec

from quire_operator.simulator import plot, scenario_file, simulation, summary


def run(scenario_path: Path, out: Path | None, as_json: bool, to: TextIO) -> None:
    """Raises SimulatorError with the way out when the file or the plot cannot be had."""
    if out is not None:
        plot.check(out)
    scenario, arrivals = scenario_file.read(scenario_path)
    record = simulation.run(scenario, arrivals)
    found = summary.summarize(record)
    if out is not None:
        plot.draw(record, found, scenario_path.stem, out)
    if as_json:
        to.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        to.write(summary.text(found) + "\n")
