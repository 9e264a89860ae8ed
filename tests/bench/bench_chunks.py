"""Eight decodes with and without a long prompt beside them, chunks bounded in time and not.

    python tests/bench/bench_chunks.py [--model DIR] [--runs 3] [--slowdown 1.75] [--out FILE.json]

The engine in this process, one copy with the bound and one without, runs in turn. A run: eight
sequences of 128 prompt tokens decode, then a prompt of 4,096 tokens comes, and the gaps between two
tokens of a decode are taken until the prompt's first token. Then eight others decode alone over the
same lengths, as decodes take longer the more they have behind them: what the gaps are without the
prompt. Then what the bound costs where all come at once: 32 prompts of 128 tokens, 64 greedy tokens
each. Prompts are random and differ, so the prefix cache finds nothing.
"""

import argparse
import json
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import torch
from processor import processor

from quire_engine.config import EngineConfig
from quire_engine.engine import Engine
from quire_engine.machine import num_cpus
from quire_engine.messages import AddRequest, CoreReady, RequestId, SamplingParams
from quire_engine.start import start_engine

mpl.use("Agg")
from matplotlib import pyplot

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
NUM_DECODES, DECODE_PROMPT_LEN = 8, 128
EARLIER_STEPS, LEAST_GAPS = 50, 150
LONG_PROMPT_LEN = 4096
BURST, BURST_ANSWER_LEN = 32, 64
KV_CACHE_BYTES = 1 << 30  # 11,000 tokens of SmolLM2's are 530 MB
RESULTS = Path(__file__).parent / "results"


@dataclass
class Run:
    """Seconds between two tokens of a decode, and the long prompt's to its first."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    burst_rates: list[float] = field(default_factory=list)  # output tokens a second
    trace: list[tuple[float, float]] = field(default_factory=list)  # of the last run, for the plot


class Bench:
    """One engine, with or without the bound."""

    def __init__(self, model: Path, slowdown: float) -> None:
        config = EngineConfig(
            model=str(model),
            device="cpu",
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            max_decode_slowdown=slowdown,
        )
        started: tuple[Engine, CoreReady] = start_engine(config)
        self.engine, self.ready = started
        self.run = Run()

    def beside_a_prompt(self, generator: random.Random) -> None:
        """One run of decodes beside the long prompt, then of as many tokens alone."""
        names = self._decodes("beside", generator)
        self._add("long", LONG_PROMPT_LEN, 1, generator)
        began = last = time.perf_counter()
        self.run.trace = []
        is_done = False
        while not is_done:
            is_done = "long" in self._step()
            before, last = last, self._gap(self.run.beside, last)
            self.run.trace.append((last - began, last - before))
        self.run.ttft.append(last - began)
        self.engine.abort(names)
        names = self._decodes("alone", generator)
        last = time.perf_counter()
        for _ in range(max(LEAST_GAPS, len(self.run.trace))):
            self._step()
            last = self._gap(self.run.alone, last)
        self.engine.abort(names)

    def burst(self, generator: random.Random) -> None:
        """Many prompts at once, to their ends."""
        for number in range(BURST):
            self._add(f"b{number}", DECODE_PROMPT_LEN, BURST_ANSWER_LEN, generator)
        began = time.perf_counter()
        while self.engine.num_pending:
            self._step()
        self.run.burst_rates.append(BURST * BURST_ANSWER_LEN / (time.perf_counter() - began))

    def _decodes(self, name: str, generator: random.Random) -> list[RequestId]:
        """Their names, once all have had their first token and some more."""
        names = [RequestId(f"{name}{number}") for number in range(NUM_DECODES)]
        for request_id in names:
            self._add(request_id, DECODE_PROMPT_LEN, 4000, generator)
        seen: set[str] = set()
        while len(seen) < NUM_DECODES:
            seen |= self._step()
        for _ in range(EARLIER_STEPS):
            self._step()
        return names

    def _gap(self, gaps: list[float], last: float) -> float:
        """Each decode gets one token a step, so a step is a gap of all of them."""
        now = time.perf_counter()
        gaps.append(now - last)
        return now

    def _step(self) -> set[str]:
        outputs = self.engine.step().outputs
        return {str(output.request_id) for output in outputs if output.token_ids}

    def _add(self, name: str, prompt_len: int, answer_len: int, generator: random.Random) -> None:
        prompt = tuple(generator.randrange(100, 40000) for _ in range(prompt_len))
        self.engine.add_request(
            AddRequest(
                request_id=RequestId(name),
                prompt_token_ids=prompt,
                sampling=SamplingParams(temperature=0, max_tokens=answer_len),
            )
        )


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(run: Run) -> dict[str, object]:
    """Milliseconds between tokens, seconds to the prompt's first, tokens a second of a burst."""
    gaps = {
        name: {"p50_ms": 1e3 * percentile(values, 0.5), "p99_ms": 1e3 * percentile(values, 0.99)}
        for name, values in (("alone", run.alone), ("beside", run.beside))
    }
    return {
        **gaps,
        "p99_ratio": gaps["beside"]["p99_ms"] / gaps["alone"]["p99_ms"],
        "num_gaps": {"alone": len(run.alone), "beside": len(run.beside)},
        "ttft_seconds": run.ttft,
        "burst_tokens_per_second": run.burst_rates,
    }


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores, kernels {report['kernels']}; "
        f"{NUM_DECODES} decodes beside a prompt of {LONG_PROMPT_LEN} tokens, then alone, "
        f"{report['runs']} runs of each in turn",
        "",
        "| chunks | between tokens alone, p50 / p99 ms | beside the prompt, p50 / p99 ms "
        "| p99, times | prompt to its first token, s | burst of 32, tok/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in report["chunks"].items():
        alone, beside = entry["alone"], entry["beside"]
        lines.append(
            f"| {name} | {alone['p50_ms']:.0f} / {alone['p99_ms']:.0f} | "
            f"{beside['p50_ms']:.0f} / {beside['p99_ms']:.0f} | {entry['p99_ratio']:.2f} | "
            f"{_spread(entry['ttft_seconds'])} | {_spread(entry['burst_tokens_per_second'])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"The prompt pays {report['ttft_ratio']:.2f} times its time to the first token, the "
            f"burst has {report['burst_ratio']:.2f} of its rate. Medians (lowest-highest). Load "
            f"average before and after: {report['load']}",
        ]
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def plot(benches: dict[str, Bench], path: Path) -> None:
    """Each gap of the last runs, over the time since the prompt came."""
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for name, bench in benches.items():
        axes.plot(*zip(*bench.run.trace, strict=True), marker=".", label=name)
    alone = statistics.median(gap for bench in benches.values() for gap in bench.run.alone)
    axes.axhline(alone, color="grey", linestyle="--", label="decodes alone, median")
    axes.set(
        xlabel=f"seconds since the prompt of {LONG_PROMPT_LEN} tokens came",
        ylabel="seconds between two tokens",
        yscale="log",
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, and write JSON, Markdown and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--slowdown", type=float, default=EngineConfig(model="x").max_decode_slowdown
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "chunks.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    torch.set_num_threads(num_cpus())
    benches = {
        f"bounded in time ({options.slowdown})": Bench(options.model, options.slowdown),
        "bounded in tokens only": Bench(options.model, 0.0),
    }
    for number in range(options.runs):
        for name, bench in benches.items():
            bench.beside_a_prompt(random.Random(number))
            bench.burst(random.Random(1000 + number))
            print(f"{name}: {bench.run.ttft[-1]:.1f} s, {bench.run.burst_rates[-1]:.1f} tok/s")
    load.append(os.getloadavg()[0])
    bounded, free = (bench.run for bench in benches.values())
    report = {
        "processor": processor(),
        "num_cpus": num_cpus(),
        "kernels": next(iter(benches.values())).ready.kernels,
        "runs": options.runs,
        "slowdown": options.slowdown,
        "num_decodes": NUM_DECODES,
        "prompt_len": LONG_PROMPT_LEN,
        "chunks": {name: summary(bench.run) for name, bench in benches.items()},
        "ttft_ratio": statistics.median(bounded.ttft) / statistics.median(free.ttft),
        "burst_ratio": statistics.median(bounded.burst_rates) / statistics.median(free.burst_rates),
        "load": [round(value, 2) for value in load],
    }
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report) + "\n")
    plot(benches, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
