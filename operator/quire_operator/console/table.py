"""A round of `top` as a table. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from quire_operator.console import words
from quire_operator.console.rounds import Line, Round

Order = Literal["load", "name", "kv", "ttft", "tokens"]

_KEYS: dict[Order, Callable[[Line], tuple[float, ...]]] = {
    "load": lambda line: (-(line.figures.waiting or 0), -(line.figures.running or 0)),
    "name": lambda line: (),
    "kv": lambda line: (-(line.figures.kv_cache_utilization or 0),),
    "ttft": lambda line: (-(line.figures.ttft_p95_seconds or 0),),
    "tokens": lambda line: (-(line.figures.tokens_per_second or 0),),
}
"""Largest first; services that are equal by name."""


def table(found: Round, order: Order, *, namespaces: bool) -> RenderableType:
    """`namespaces`: whether to name each service's."""
    if not found.lines:
        where = "any namespace" if namespaces else "this namespace (-A shows all)"
        return Group(Text(f"There is no InferenceService in {where}."), *_notes(found))
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    if namespaces:
        shown.add_column("NAMESPACE", no_wrap=True)
    shown.add_column("NAME", no_wrap=True)
    for number in ("READY", "RUN", "WAIT", "KV", "TTFT p95", "TOKENS/S"):
        shown.add_column(number, no_wrap=True, justify="right")
    shown.add_column("", ratio=1, overflow="fold")
    for line in sorted(found.lines, key=lambda line: (*_KEYS[order](line), line.key)):
        shown.add_row(*([line.key.namespace] if namespaces else []), *_cells(line))
    return Group(shown, *_notes(found))


def _notes(found: Round) -> list[Text]:
    return [Text(f"not shown: {words.printable(why)}", "yellow") for why in found.unseen]


def _cells(line: Line) -> list[str | Text]:
    figures = line.figures
    wanted = "?" if line.wanted is None else line.wanted
    return [
        line.key.name,
        f"{line.ready}/{wanted}",
        words.count(figures.running),
        words.count(figures.waiting),
        words.percent(figures.kv_cache_utilization),
        words.duration(figures.ttft_p95_seconds),
        "-" if figures.tokens_per_second is None else f"{figures.tokens_per_second:,.1f}",
        _remark(line),
    ]


def _remark(line: Line) -> Text:
    """Why it is not ready, and which pods say nothing: their load is missing from the numbers."""
    said = Text(overflow="fold")
    if line.status != "True":
        said.append(words.printable(line.reason or "not ready"), "red")
    silent = line.figures.silent
    if silent:
        pod, why = silent[0]
        more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
        said.append(f"{'; ' if said else ''}pod {pod} {words.printable(why)}{more}", "yellow")
    return said
