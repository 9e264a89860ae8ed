"""`kubectl quire`: what a person asks of a service, read from its status; and the simulator.

Installed as `kubectl-quire`, which kubectl finds on PATH. It reads through kubectl itself, and so
uses whatever cluster and credentials kubectl would; `simulate` asks no cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from quire_operator import api
from quire_operator.conditions import READY
from quire_operator.errors import SimulatorError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Quire's InferenceServices.")

NAMESPACE = Annotated[str | None, typer.Option("--namespace", "-n", help="kubectl's, unless given")]
OUTPUT = Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="text or json")]


@app.callback()
def root() -> None:
    """Quire's InferenceServices."""


@app.command()
def status(name: str, namespace: NAMESPACE = None, output: OUTPUT = "text") -> None:
    """Why NAME is ready or not, its replicas, model and the scaler's last decisions."""
    service = read(name, namespace)
    if output == "json":
        sys.stdout.write(json.dumps(service.get("status") or {}, indent=2) + "\n")
        return
    show(Console(), service)


@app.command()
def simulate(
    scenario: Annotated[Path, typer.Argument(help="a YAML file; see operator/docs/README.md")],
    out: Annotated[Path | None, typer.Option(help="draw the simulation as this PNG")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the summary as JSON")] = False,
) -> None:
    """What the scaler would do under the load and faults of SCENARIO, without a cluster."""
    from quire_operator.simulator import command  # half a second that `status` need not wait for

    try:
        command.run(scenario, out, as_json, sys.stdout)
    except SimulatorError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None


def read(name: str, namespace: str | None) -> dict[str, Any]:
    """The InferenceService as kubectl reads it; if it cannot, exits with its words."""
    command = ["kubectl", "get", f"{api.PLURAL}.{api.GROUP}", name, "-o", "json"]
    if namespace:
        command += ["-n", namespace]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise typer.BadParameter("kubectl is not on PATH; install it first") from None
    if answer.returncode:
        sys.stderr.write(answer.stderr)
        raise typer.Exit(answer.returncode)
    service: dict[str, Any] = json.loads(answer.stdout)
    return service


def show(console: Console, service: dict[str, Any]) -> None:
    """A screen of text: the verdict first, then what it is made of."""
    meta, found = service["metadata"], api.decode_status(service.get("status") or {})
    uri = service["spec"]["model"]["uri"]
    ready = next((c for c in found.conditions if c.type == READY), None)
    verdict = f"{ready.reason}: {ready.message}" if ready else "not looked at by the operator yet"
    console.print(f"{meta['namespace']}/{meta['name']}  {verdict}", markup=False, highlight=False)
    if found.observed_generation != meta.get("generation"):
        console.print("this status is of an earlier spec", highlight=False)
    console.print(_facts(uri, service["spec"].get("replicas", 1), found))
    console.print(_conditions(found.conditions))
    if found.scaling is not None and found.scaling.decisions:
        console.print(_decisions(found.scaling.decisions))


def _facts(uri: str, wanted: int, found: api.Status) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("URL", found.url or "-")
    table.add_row("Model", uri)
    if found.model is not None and found.model.commit:
        table.add_row("Commit", found.model.commit)
    table.add_row("Revision", found.revision or "-")
    table.add_row("Replicas", f"{found.ready_replicas or 0} ready of {wanted}")
    return table


def _conditions(conditions: list[api.Condition]) -> Table:
    table = Table("Condition", "Status", "Reason", "Message", box=None, pad_edge=False)
    for condition in conditions:
        table.add_row(condition.type, condition.status, condition.reason, condition.message)
    return table


def _decisions(decisions: list[api.ScalingDecision]) -> Table:
    table = Table("Time", "Replicas", "Why", box=None, pad_edge=False)
    for decision in decisions:
        change = f"{decision.from_replicas} -> {decision.to_replicas}"
        table.add_row(decision.time, change, decision.reason)
    return table


def main() -> None:
    """The console script."""
    app()
