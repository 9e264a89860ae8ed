"""The report of bench_servers.py as Markdown and as a plot."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from lengths import Lengths
from open_loop import GOOD_TTFT_SECONDS

COLUMNS = (
    "rate, 1/s", "server", "answered / sent", "asked, tok/s", "output, tok/s",
    "first token p50 / p99, s", "between tokens p50 / p99, ms",
    f"first token ≤ {GOOD_TTFT_SECONDS:.0f} s", "client's CPU",
)  # fmt: skip


def about_table(table: list[Lengths]) -> str:
    prompts, answers = [row.prompt for row in table], [row.answer for row in table]
    return (
        f"{len(table)} rows of lengths, means {statistics.fmean(prompts):.0f} tokens in and "
        f"{statistics.fmean(answers):.0f} out, longest {max(prompts)} and {max(answers)}"
    )


def markdown(report: dict, plot: str) -> str:
    """The report for people."""
    settings = report["settings"]
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores, which the client shares; "
        f"SmolLM2-135M-Instruct over HTTP, answers streamed. {settings['table']}. Poisson arrivals "
        f"of seed {settings['seed']} for {settings['seconds']:g} s, the same for all servers at a "
        f"rate; what is not answered {settings['drain']:g} s later counts as not answered. Times "
        "count from when a request was due; `-`: too few had a token by then. The client's share "
        "is of all cores.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + " --- |" * len(COLUMNS),
        *_rows(report["servers"], settings["seconds"]),
        "",
        f"![first token and output against the rate]({plot})",
        "",
    ]
    for name, server in report["servers"].items():
        facts = server["facts"]
        lines.append(f"- {name}: {facts['version']}; {facts['remark']}; `{facts['command']}`")
    loads = "; ".join(f"{each['servers']} {each['load']}" for each in report["load"])
    return "\n".join([*lines, "", f"Load average before and after each piece: {loads}", ""])


def _rows(servers: dict, seconds: float) -> Iterator[str]:
    rates = sorted({rate for server in servers.values() for rate in server["rates"]}, key=float)
    for rate in rates:
        for name, server in servers.items():
            if (told := server["rates"].get(rate)) is not None:
                yield f"| {rate} | {name} | {' | '.join(_cells(told, seconds))} |"


def _cells(told: dict, seconds: float) -> list[str]:
    lost = [f"{told[name]} {name}" for name in ("refused", "broken") if told[name]]
    return [
        ", ".join([f"{told['answered']} / {told['sent']}", *lost]),
        f"{told['asked_tokens'] / seconds:.0f}",
        f"{told['output_tokens_per_second']:.1f}",
        f"{_shown(told['ttft_p50_seconds'], 2)} / {_shown(told['ttft_p99_seconds'], 2)}",
        f"{_shown(told['between_tokens_p50_ms'], 0)} / {_shown(told['between_tokens_p99_ms'], 0)}",
        f"{told['good_share']:.0%}",
        f"{told['client_cpu_share']:.1%}",
    ]


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw(report: dict, path: Path) -> None:
    """Two panels over the rate; a triangle at the upper edge: half got no token by the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (name, server) in enumerate(report["servers"].items()):
        rates = sorted(server["rates"], key=float)
        told = [server["rates"][rate] for rate in rates]
        style = {"color": f"C{number}", "marker": "o", "markersize": 4, "label": name}
        first = [each["ttft_p50_seconds"] for each in told]
        left.plot(
            list(map(float, rates)), [float("nan") if s is None else s for s in first], **style
        )
        none = [float(rate) for rate, value in zip(rates, first, strict=True) if value is None]
        edge = left.get_xaxis_transform()
        [missing] = left.plot(
            none, [0.98] * len(none), "^", color=f"C{number}", transform=edge, clip_on=False
        )
        missing.set_in_layout(False)
        output = [each["output_tokens_per_second"] for each in told]
        right.plot(list(map(float, rates)), output, **style)
    every = (rate for server in report["servers"].values() for rate in server["rates"])
    ticks = sorted({float(rate) for rate in every})
    left.set_yscale("log")
    left.set_ylabel("time to first token, median, s")
    right.set_ylabel("output tokens a second")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("requests a second")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
