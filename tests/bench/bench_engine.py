"""The engine in one process against transformers' generate, and the time from exec to ready.

    python tests/bench/bench_engine.py [--model DIR] [--runs 5] [--batches 1,8,32] [--out FILE.json]
        [--no-start] [--no-peers]

128 random tokens in, 64 greedy tokens out, end-of-sequence ignored; output tokens a second over the
whole call, prefill included. Runs of all contestants are interleaved, so that a busy minute hurts
them alike; medians and spreads are of the runs. transformers counts with its better precision; one
that a short trial finds three times slower is left out (bf16 on a processor without it). Prompts
differ from run to run, so the prefix cache finds nothing. The ratio is that of our bf16 weights to
the faster peer; int8 is held against bf16 in a measurement of decode alone, at batch 1.
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
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from memory_read import read_rate
from processor import processor

from quire_engine.config import EngineConfig, Quantization
from quire_engine.engine import Engine
from quire_engine.machine import num_cpus
from quire_engine.messages import AddRequest, CoreReady, RequestId, SamplingParams
from quire_engine.start import start_engine

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
PROMPT_LEN, ANSWER_LEN = 128, 64
KV_CACHE_BYTES = 512 << 20  # 32 sequences of 192 tokens take 283 MB
CONTESTANTS = ("quire", "quire int8", "transformers fp32", "transformers bf16")
READY_RUNS = 3
RESULTS = Path(__file__).parent / "results"
Contestant = Callable[[list[list[int]]], None]
HuggingFace = Callable[..., None]


@dataclass(frozen=True)
class Quire:
    """Our engine, in this process."""

    engine: Engine
    ready: CoreReady

    @staticmethod
    def start(model: Path, quantization: Quantization | None = None) -> "Quire":
        config = EngineConfig(
            model=str(model),
            device="cpu",
            quantization=quantization,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
        )
        return Quire(*start_engine(config))

    def run(self, prompts: list[list[int]]) -> None:
        self._add(prompts)
        assert self._finish() == ANSWER_LEN * len(prompts)

    def decode_rate(self, prompt: list[int]) -> float:
        """Tokens a second of one sequence, from its first answered token on."""
        self._add([prompt])
        while not sum(len(output.token_ids) for output in self.engine.step().outputs):
            pass
        begin = time.perf_counter()
        return self._finish() / (time.perf_counter() - begin)

    def _add(self, prompts: list[list[int]]) -> None:
        for number, prompt in enumerate(prompts):
            self.engine.add_request(
                AddRequest(
                    request_id=RequestId(str(number)),
                    prompt_token_ids=tuple(prompt),
                    sampling=SamplingParams(temperature=0, max_tokens=ANSWER_LEN),
                )
            )

    def _finish(self) -> int:
        """Run until nothing is pending; the tokens that came out."""
        count = 0
        while self.engine.num_pending:
            count += sum(len(output.token_ids) for output in self.engine.step().outputs)
        return count


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


def measure_decode(ours: dict[str, Quire], runs: int) -> dict[str, object]:
    """Decode at batch 1, contestants interleaved: each token reads all weights once."""
    reading = read_rate()
    rates: dict[str, list[float]] = {name: [] for name in ours}
    for number in range(runs):
        generator = random.Random(number)
        prompt = [generator.randrange(100, 40000) for _ in range(PROMPT_LEN)]
        for name, contestant in ours.items():
            rates[name].append(contestant.decode_rate(prompt))
    report: dict[str, object] = {"read_bytes_per_second": max(reading, read_rate())}
    for name, values in rates.items():
        median = statistics.median(values)
        report[name] = {
            "median": median,
            "low": min(values),
            "high": max(values),
            "weight_bytes_per_second": median * ours[name].ready.weight_bytes,
        }
    bf16, int8 = (statistics.median(rates[name]) for name in ("quire", "quire int8"))
    return report | {"ratio": int8 / bf16, "runs": runs}


def decode_lines(report: dict) -> list[str]:
    """The decode measurement as Markdown."""
    reading = report["read_bytes_per_second"] / 1e9
    lines = [
        "",
        f"Decode at batch 1, {report['runs']} runs in turn: int8 is {report['ratio']:.2f} times as "
        f"fast as bf16; plain reading reaches {reading:.1f} GB/s",
        "",
        "| weights | tok/s | weights read, GB/s |",
        "| --- | --- | --- |",
    ]
    for name in ("quire", "quire int8"):
        entry = report[name]
        cell = f"{entry['median']:.1f} ({entry['low']:.1f}-{entry['high']:.1f})"
        lines.append(f"| {name} | {cell} | {entry['weight_bytes_per_second'] / 1e9:.1f} |")
    return lines


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
        f"| batch | {' | '.join(CONTESTANTS)} | ratio |",
        f"| --- |{' --- |' * (len(CONTESTANTS) + 1)}",
    ]
    for batch, entry in report["throughput"].items():
        cells = [
            f"{entry[name]['median']:.1f} ({entry[name]['low']:.1f}-{entry[name]['high']:.1f})"
            if name in entry
            else "left out"
            for name in CONTESTANTS
        ]
        lines.append(f"| {batch} | {' | '.join(cells)} | {entry['ratio']:.2f} |")
    lines += decode_lines(report["decode"])
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
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--no-start", action="store_true", help="leave out exec to ready")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    starts = [] if options.no_start else exec_to_ready(options.model)
    torch.set_num_threads(num_cpus())
    ours = {
        "quire": Quire.start(options.model),
        "quire int8": Quire.start(options.model, "int8"),
    }
    contestants = {name: each.run for name, each in ours.items()}
    if not options.no_peers:
        contestants |= peers(options.model)
    measure(contestants, 1, 1)  # warm up
    throughput = {}
    for batch in map(int, options.batches.split(",")):
        entry: dict = measure(contestants, batch, options.runs)
        others = [name for name in entry if name not in ours] or ["quire"]
        peer = max(entry[name]["median"] for name in others)
        throughput[batch] = entry | {"ratio": entry["quire"]["median"] / peer}
    decode = measure_decode(ours, 4 * options.runs)
    load.append(os.getloadavg()[0])
    report = {
        "processor": processor(),
        "num_cpus": num_cpus(),
        "kernels": ours["quire"].ready.kernels,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "runs": options.runs,
        "prompt_len": PROMPT_LEN,
        "answer_len": ANSWER_LEN,
        "throughput": throughput,
        "decode": decode,
        "exec_to_ready_seconds": starts,
        "load": [round(value, 2) for value in load],
    }
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report) + "\n")


if __name__ == "__main__":
    main()
