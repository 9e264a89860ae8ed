"""The engine in one process against transformers' generate, and the time from exec to ready.

    python tests/bench/bench_engine.py [--model DIR] [--runs 5] [--batches 1,8,32] [--out FILE.json]

128 random tokens in, 64 greedy tokens out, end-of-sequence ignored; output tokens a second over the
whole call, prefill included. Runs of all contestants are interleaved, so that a busy minute hurts
them alike; medians and spreads are of the runs. transformers counts with its better precision; one
that a short trial finds three times slower is left out (bf16 on a processor without it). Prompts
differ from run to run, so the prefix cache finds nothing.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from processor import processor

from quire_engine.config import EngineConfig
from quire_engine.machine import num_cpus
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.start import start_engine

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
PROMPT_LEN, ANSWER_LEN = 128, 64
READY_RUNS = 3
RESULTS = Path(__file__).parent / "results"
Contestant = Callable[[list[list[int]]], None]
HuggingFace = Callable[..., None]


def quire(model: Path) -> tuple[Contestant, str]:
    """Our engine, and what its kernels run on."""
    engine, ready = start_engine(EngineConfig(model=str(model), device="cpu"))
    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_LEN)

    def run(prompts: list[list[int]]) -> None:
        for number, prompt in enumerate(prompts):
            engine.add_request(
                AddRequest(
                    request_id=RequestId(str(number)),
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                )
            )
        count = 0
        while engine.num_pending:
            count += sum(len(output.token_ids) for output in engine.step().outputs)
        assert count == ANSWER_LEN * len(prompts)

    return run, ready.kernels


def hugging_face(model: Path, dtype: torch.dtype) -> "HuggingFace":
    """transformers' generate in `dtype`: a run of prompts and a number of tokens."""
    peer = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], answer_len: int = ANSWER_LEN) -> None:
        ids = torch.tensor(prompts)
        answer = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=answer_len,
            max_new_tokens=answer_len,
            pad_token_id=0,
        )
        assert answer.shape == (len(prompts), len(prompts[0]) + answer_len)

    return run


def peers(model: Path) -> dict[str, Contestant]:
    """transformers in the precisions that are worth a run here."""
    both = {
        "transformers fp32": hugging_face(model, torch.float32),
        "transformers bf16": hugging_face(model, torch.bfloat16),
    }
    trial = {name: min(_trial(run) for _ in range(2)) for name, run in both.items()}
    best = min(trial.values())
    return {name: run for name, run in both.items() if trial[name] < 3 * best}


def _trial(run: "HuggingFace") -> float:
    """Seconds that four prompts of 32 tokens and 8 answered tokens take."""
    begin = time.perf_counter()
    run([[100 + n] * 32 for n in range(4)], 8)
    return time.perf_counter() - begin


def measure(
    contestants: dict[str, Contestant], batch: int, runs: int
) -> dict[str, dict[str, float | list[float]]]:
    """Output tokens a second of each contestant, interleaved."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(runs):
        generator = random.Random(1000 * batch + number)
        prompts = [
            [generator.randrange(100, 40000) for _ in range(PROMPT_LEN)] for _ in range(batch)
        ]
        for name, run in contestants.items():
            begin = time.perf_counter()
            run(prompts)
            rates[name].append(batch * ANSWER_LEN / (time.perf_counter() - begin))
    return {
        name: {
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "all": values,
        }
        for name, values in rates.items()
    }


def exec_to_ready(model: Path) -> list[float]:
    """Seconds from starting `quire-engine serve` to a 200 from /ready."""
    return [_one_start(model) for _ in range(READY_RUNS)]


def _one_start(model: Path) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "quire_engine", "serve", str(model), "--device", "cpu",
         "--host", "127.0.0.1", "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while server.poll() is None and time.perf_counter() - begin < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                    return time.perf_counter() - begin
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise SystemExit(f"quire-engine did not become ready (exit code {server.poll()})")
    finally:
        server.terminate()
        server.wait(timeout=30)


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores, kernels {report['kernels']}; output "
        f"tok/s, median of {report['runs']} interleaved runs (lowest-highest)",
        "",
        "| batch | quire | transformers fp32 | transformers bf16 | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for batch, entry in report["throughput"].items():
        cells = [
            f"{entry[name]['median']:.1f} ({entry[name]['low']:.1f}-{entry[name]['high']:.1f})"
            if name in entry
            else "left out"
            for name in ("quire", "transformers fp32", "transformers bf16")
        ]
        lines.append(f"| {batch} | {' | '.join(cells)} | {entry['ratio']:.2f} |")
    if starts := report["exec_to_ready_seconds"]:
        seconds = ", ".join(f"{value:.1f}" for value in starts)
        lines += ["", f"exec to ready: median {statistics.median(starts):.1f} s ({seconds})"]
    return "\n".join([*lines, "", f"load average before and after: {report['load']}"])


def main() -> None:
    """Measure, print, and write the report as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--no-start", action="store_true", help="leave out exec to ready")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    starts = [] if options.no_start else exec_to_ready(options.model)
    torch.set_num_threads(num_cpus())
    ours, kernels = quire(options.model)
    contestants = {"quire": ours, **peers(options.model)}
    measure(contestants, 1, 1)  # warm up
    throughput = {}
    for batch in map(int, options.batches.split(",")):
        entry: dict = measure(contestants, batch, options.runs)
        peer = max(values["median"] for name, values in entry.items() if name != "quire")
        throughput[batch] = entry | {"ratio": entry["quire"]["median"] / peer}
    load.append(os.getloadavg()[0])
    report = {
        "processor": processor(),
        "num_cpus": num_cpus(),
        "kernels": kernels,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "runs": options.runs,
        "prompt_len": PROMPT_LEN,
        "answer_len": ANSWER_LEN,
        "throughput": throughput,
        "exec_to_ready_seconds": starts,
        "load": [round(value, 2) for value in load],
    }
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report) + "\n")


if __name__ == "__main__":
    main()
