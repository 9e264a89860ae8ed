"""Draws a simulation as a PNG: replicas, queue and time to first token over time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from quire_operator.errors import SimulatorError
from quire_operator.simulator.scenario import (
    Fault,
    GpuShortage,
    MetricsOutage,
    PodCrash,
    SlowStart,
)
from quire_operator.simulator.simulation import Record
from quire_operator.simulator.summary import Summary, ttft_p95_over_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READY, _STARTING, _DRAINING, _STUCK = "#4c9f70", "#f2c14e", "#a9b4c2", "#d1495b"
_WANTED, _LINE, _ARRIVALS, _TARGET, _FAULT = "#1b1b1e", "#2e5eaa", "#b0b0b0", "#d1495b", "#d1495b"


def check(path: Path) -> None:
    """Says at once, before minutes of work, that nothing can be drawn. Raises SimulatorError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SimulatorError(
            "--out needs matplotlib, which is not installed here; "
            "pip install 'quire[operator,simulate]', or leave --out away"
        ) from None
    if path.suffix != ".png" or not path.parent.is_dir():
        raise SimulatorError(
            f"--out must be the path of a PNG in a folder that exists, got {path}; "
            "give one such as ./plot.png"
        )


def draw(record: Record, summary: Summary, title: str, path: Path) -> None:
    """Writes the PNG; the same simulation gives the same picture. SimulatorError if it cannot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    _compose(figure, record, summary, title)
    try:
        figure.savefig(path, dpi=100, metadata={"Software": None})
    except OSError as error:
        raise SimulatorError(
            f"--out must be writable, got {path}: {error.strerror}; give another path"
        ) from None


def _compose(figure: Figure, record: Record, summary: Summary, title: str) -> None:
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    replicas, queue, ttft = panels
    _draw_replicas(replicas, record)
    _draw_queue(queue, record)
    _draw_ttft(ttft, record)
    for panel in panels:
        _shade_faults(panel, record, named=panel is replicas)
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(0, record.scenario.duration_seconds / 60)
    ttft.set_xlabel("minutes")
    figure.align_ylabels(panels)
    figure.suptitle(
        f"{title}: {summary.requests.total} requests, {summary.replica_hours:.1f} replica-hours, "
        f"{summary.scale_events} changes of replicas, {summary.direction_changes} of direction",
        fontsize=11,
    )


def _draw_replicas(panel: Axes, record: Record) -> None:
    samples = record.samples
    minutes = [sample.seconds / 60 for sample in samples]
    layers = {
        "ready": ([sample.ready for sample in samples], _READY),
        "starting": ([sample.starting for sample in samples], _STARTING),
        "unschedulable": ([sample.unschedulable for sample in samples], _STUCK),
        "draining": ([sample.draining for sample in samples], _DRAINING),
    }
    shown = {name: layer for name, layer in layers.items() if name == "ready" or any(layer[0])}
    panel.stackplot(
        minutes,
        *(counts for counts, _color in shown.values()),
        labels=list(shown),
        colors=[color for _counts, color in shown.values()],
        step="post",
        alpha=0.85,
    )
    wanted = [sample.replicas for sample in samples]
    panel.step(minutes, wanted, where="post", color=_WANTED, linewidth=1.6, label="wanted")
    scaling = record.scenario.scaling
    panel.axhline(scaling.max_replicas, color=_WANTED, linestyle=":", linewidth=0.9)
    panel.annotate(
        "maxReplicas",
        (1, scaling.max_replicas),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 2),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    panel.set_ylim(0, scaling.max_replicas * 1.35)  # the legend and the faults' names stand above
    panel.set_ylabel("replicas")
    panel.locator_params(axis="y", integer=True)
    panel.legend(loc="upper left", ncols=5, fontsize=8, framealpha=0.9)


def _draw_queue(panel: Axes, record: Record) -> None:
    samples = record.samples
    minutes = [sample.seconds / 60 for sample in samples]
    panel.fill_between(
        minutes, [sample.queue for sample in samples], color=_LINE, alpha=0.35, linewidth=0
    )
    panel.plot(minutes, [s.queue for s in samples], color=_LINE, linewidth=1.2, label="waiting")
    limit = [s.ready * record.scenario.scaling.targets.queue_depth for s in samples]
    panel.step(
        minutes, limit, where="post", color=_TARGET, linestyle="--", linewidth=1, label="target"
    )
    panel.set_ylabel("requests waiting")
    panel.set_ylim(0, max(8, *(s.queue for s in samples), *limit) * 1.3)
    rates = panel.twinx()
    per_second = _arrivals_per_second(record)
    rates.plot(minutes, per_second, color=_ARRIVALS, linewidth=1)
    rates.set_ylabel("arrivals/s", color="#808080")
    rates.tick_params(axis="y", colors="#808080")
    rates.set_ylim(0, max(per_second) * 1.3 or 1)
    rates.spines["top"].set_visible(False)
    panel.plot([], [], color=_ARRIVALS, linewidth=1, label="arrivals (right)")
    panel.legend(loc="upper right", ncols=3, fontsize=8, framealpha=0.9)


def _arrivals_per_second(record: Record) -> list[float]:
    """Over the 30 s around each sample, as single rounds are too few to show a rate."""
    interval = record.scenario.interval_seconds
    counts = [0] * (len(record.samples) + 1)
    for request in record.requests:
        counts[min(int(request.arrived / interval), len(record.samples))] += 1
    reach = max(1, round(15 / interval))
    rates = []
    for index in range(len(record.samples)):
        around = counts[max(0, index - reach) : index + reach]
        rates.append(sum(around) / (interval * len(around)))
    return rates


def _draw_ttft(panel: Axes, record: Record) -> None:
    minutes = [sample.seconds / 60 for sample in record.samples]
    p95 = [float("nan") if p is None else p for p in ttft_p95_over_time(record)]
    panel.plot(minutes, p95, color=_LINE, linewidth=1.2, label="p95 of the last minute")
    target = record.scenario.scaling.targets.ttft_seconds
    if target is not None:
        panel.axhline(target, color=_TARGET, linestyle="--", linewidth=1, label="target")
    panel.set_yscale("log")
    panel.set_ylabel("TTFT p95, s")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    known = [value for value in p95 if value > 0]
    if known:  # whole decades, as a log scale with less than one has no tick to read
        low, high = math.log10(min(known)), math.log10(max(*known, 2 * (target or 0)))
        panel.set_ylim(10 ** math.floor(low), 10 ** (math.ceil(high) + 0.3))
    panel.legend(loc="upper right", ncols=2, fontsize=8, framealpha=0.9)


def _shade_faults(panel: Axes, record: Record, *, named: bool) -> None:
    for fault in record.scenario.faults:
        start, end, words = _described(fault)
        panel.axvspan(start / 60, end / 60, color=_FAULT, alpha=0.1, linewidth=0, zorder=0)
        for edge in {start, end}:
            panel.axvline(edge / 60, color=_FAULT, linewidth=0.8, linestyle=":")
        if named:
            panel.annotate(
                words,
                (start / 60, 0.8),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                color="#8c2f39",
            )


def _described(fault: Fault) -> tuple[float, float, str]:
    match fault:
        case MetricsOutage(from_seconds=start, to_seconds=end, pods=pods):
            return start, end, f"no metrics from {'any pod' if pods is None else _pods(pods)}"
        case GpuShortage(from_seconds=start, to_seconds=end, max_pods=most):
            return start, end, f"room for {_pods(most)}"
        case SlowStart(from_seconds=start, to_seconds=end, factor=factor):
            return start, end, f"starts take {factor:g} times as long"
        case PodCrash(at_seconds=at, pods=pods):
            return at, at, f"crash of {_pods(pods)}"


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"
