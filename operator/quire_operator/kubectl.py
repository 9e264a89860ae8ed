"""`kubectl quire`: what a person asks of services, and the simulator.

Installed as `kubectl-quire`, which kubectl finds on PATH. Here are the options only: a help text
need not wait for what a command imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from quire_operator.console.words import printable
from quire_operator.errors import ConsoleError, SimulatorError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Quire's InferenceServices.")

NAMESPACE = Annotated[
    str | None, typer.Option("--namespace", "-n", help="the context's, unless given")
]
CONTEXT = Annotated[
    str | None, typer.Option(help="of the kubeconfig; the current one, unless given")
]
KUBECONFIG = Annotated[
    str | None, typer.Option(help="KUBECONFIG or ~/.kube/config, unless given", metavar="FILE")
]


@app.callback()
def root() -> None:
    """Quire's InferenceServices."""


@app.command()
def status(
    name: str,
    namespace: NAMESPACE = None,
    output: Annotated[
        Literal["text", "json"], typer.Option("--output", "-o", help="a screen of text, or JSON")
    ] = "text",
    context: CONTEXT = None,
    kubeconfig: KUBECONFIG = None,
) -> None:
    """The story of NAME on one screen: why it is ready or not, and all that this hangs on."""
    from quire_operator.console import command
    from quire_operator.console.cluster import Options

    options = Options(kubeconfig=kubeconfig, context=context, namespace=namespace)
    _run(command.status(options, name, output, sys.stdout))


@app.command()
def top(
    namespace: NAMESPACE = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="services of all namespaces")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.5, max=3600, help="seconds from one look to the next")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="one sample, taken over an interval, and end")
    ] = False,
    sort: Annotated[
        Literal["load", "name", "kv", "ttft", "tokens"], typer.Option(help="what stands first")
    ] = "load",
    context: CONTEXT = None,
    kubeconfig: KUBECONFIG = None,
) -> None:
    """Load and speed of all services, live; q or Ctrl-C ends it."""
    from quire_operator.console import command
    from quire_operator.console.cluster import Options

    options = Options(kubeconfig=kubeconfig, context=context, namespace=namespace)
    how = command.TopOptions(
        all_namespaces=all_namespaces, interval=interval, once=once, order=sort
    )
    _run(command.top(options, how, sys.stdout))


def _run(command: Coroutine[Any, Any, None]) -> None:
    """To its end, to Ctrl-C, or to that of whoever reads the pipe: these two are no errors."""
    import asyncio

    try:
        asyncio.run(command)
        sys.stdout.flush()
    except ConsoleError as error:
        sys.stderr.write(f"{printable(str(error))}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


@app.command()
def simulate(
    scenario: Annotated[Path, typer.Argument(help="a YAML file; see operator/docs/README.md")],
    out: Annotated[Path | None, typer.Option(help="draw the simulation as this PNG")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the summary as JSON")] = False,
) -> None:
    """What the scaler would do under the load and faults of SCENARIO, without a cluster."""
    from quire_operator.simulator import command

    try:
        command.run(scenario, out, as_json, sys.stdout)
    except SimulatorError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
