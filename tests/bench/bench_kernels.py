"""The CPU kernels against torch: `python tests/bench/bench_kernels.py [--json FILE]`.

Calls come in bursts that take turns in one process, so that what else the machine does falls on all
sides alike. Int8 weights are held against our own bf16 ones. The best call and the median are
given; the ratio is that of the best, which a busy machine disturbs least. A burst's first calls do
not count: torch's OpenMP threads still spin then from the burst before. Weights are walked through
in several copies that together exceed the caches, as a model's layers do.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from memory_read import read_rate
from processor import processor

import quire_kernels as qk

# SmolLM2-135M: fused QKV, fused gate and up, down, and the tied head
LAYERS = {"qkv": (960, 576), "gate_up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
HEADS, KV_HEADS, DIM, BLOCK = 9, 3, 64, 16
CACHE_FILL_BYTES = 100e6


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call."""

    best: float
    median: float


@dataclass(frozen=True)
class Result:
    """One case; `ratio` is the first peer's best call over ours."""

    case: str
    quire: Timing
    peers: dict[str, Timing]
    ratio: float
    rate: str  # that our best call reaches


def measure(
    case: str,
    calls: dict[str, Callable[[], object]],
    seconds: float,
    rate: Callable[[float], str] = lambda _: "",
) -> Result:
    """Times `calls`, ours first, in bursts taken in turn for about `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(reversed(calls))]) < 3:
        for name, call in calls.items():
            times[name].extend(burst(call))
    timings = {name: Timing(min(t), statistics.median(t)) for name, t in times.items()}
    quire = timings.pop("quire")
    peer = next(iter(timings.values()))
    return Result(case, quire, timings, peer.best / quire.best, rate(quire.best))


def burst(call: Callable[[], object], warm_seconds: float = 0.01) -> list[float]:
    """Microseconds of calls during some 30 ms, those of the first 10 ms left out; one at least."""
    start = time.perf_counter()
    call()
    while time.perf_counter() < start + warm_seconds:
        call()
    taken: list[float] = []
    while not taken or time.perf_counter() < start + 3 * warm_seconds:
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1e6)
    return taken


def in_turn(items: Sequence[object], call: Callable[[object], object]) -> Callable[[], object]:
    """A call that takes another of `items` each time."""
    position = 0

    def run() -> object:
        nonlocal position
        position = (position + 1) % len(items)
        return call(items[position])

    return run


def bench_linear(name: str, rows: int, seconds: float) -> Result:
    columns, depth = LAYERS[name]
    copies = max(1, math.ceil(CACHE_FILL_BYTES / (columns * depth * 2)))
    narrow = [torch.randn(columns, depth).bfloat16() for _ in range(min(copies, 24))]
    packed = [qk.pack_linear(weight) for weight in narrow]
    wide = [weight.float() for weight in narrow]
    x = torch.randn(rows, depth)
    x16 = x.bfloat16()
    flops, size = 2 * rows * columns * depth, 2 * columns * depth
    return measure(
        f"linear {name} T={rows}",
        {
            "quire": in_turn(packed, lambda weight: qk.linear(x, weight)),
            "torch fp32": in_turn(wide, lambda weight: F.linear(x, weight)),
            "torch bf16": in_turn(narrow, lambda weight: F.linear(x16, weight)),
        },
        seconds,
        lambda us: f"{flops / us / 1e3:.0f} GFLOP/s" if rows > 4 else f"{size / us / 1e3:.1f} GB/s",
    )


def bench_int8(name: str, rows: int, seconds: float) -> Result:
    """Int8 weights against the same weights in bf16, both ours; at one row beside plain reading."""
    columns, depth = LAYERS[name]
    copies = min(24, max(1, math.ceil(CACHE_FILL_BYTES / (columns * depth))))
    narrow = [torch.randn(columns, depth).bfloat16() for _ in range(copies)]
    packed = [qk.pack_linear(weight) for weight in narrow]
    quantized = [qk.pack_linear(weight, "int8") for weight in narrow]
    x = torch.randn(rows, depth)
    flops, size = 2 * rows * columns * depth, quantized[0].nbytes
    reading = read_rate()

    def rate(us: float) -> str:
        if rows > 4:
            return f"{flops / us / 1e3:.0f} GFLOP/s"
        return f"{size / us / 1e3:.1f} of {reading / 1e9:.1f} GB/s"

    return measure(
        f"int8 linear {name} T={rows}",
        {
            "quire": in_turn(quantized, lambda weight: qk.linear(x, weight)),
            "quire bf16": in_turn(packed, lambda weight: qk.linear(x, weight)),
        },
        seconds,
        rate,
    )


def bench_attention(num_seqs: int, num_queries: int, length: int, seconds: float) -> Result:
    """Ours over a paged cache in random order; torch's over contiguous keys, heads repeated."""
    blocks = -(-length // BLOCK)
    caches = torch.randn(2, num_seqs * blocks, BLOCK, KV_HEADS, DIM)
    tables = torch.randperm(num_seqs * blocks).to(torch.int32).view(num_seqs, blocks)
    query = torch.randn(num_seqs * num_queries, HEADS, DIM)
    starts = (torch.arange(num_seqs + 1) * num_queries).to(torch.int32)
    lens = torch.full((num_seqs,), length, dtype=torch.int32)
    keys, values = torch.randn(2, num_seqs, HEADS, length, DIM)
    dense = torch.randn(num_seqs, HEADS, num_queries, DIM)
    positions = torch.arange(length)
    mask = positions[None, :] <= positions[length - num_queries :, None]
    kind = "decode" if num_queries == 1 else f"prefill {num_queries}"
    read = 8 * num_seqs * length * KV_HEADS * DIM
    flops = 4 * num_seqs * HEADS * DIM * sum(length - i for i in range(num_queries))

    def rate(us: float) -> str:
        return (
            f"{read / us / 1e3:.1f} GB/s" if num_queries == 1 else f"{flops / us / 1e3:.0f} GFLOP/s"
        )

    return measure(
        f"attention {kind} B={num_seqs} L={length}",
        {
            "quire": lambda: qk.paged_attention(
                query, caches[0], caches[1], starts, lens, tables, DIM**-0.5
            ),
            "torch sdpa": lambda: F.scaled_dot_product_attention(
                dense, keys, values, attn_mask=None if num_queries == 1 else mask
            ),
        },
        seconds,
        rate,
    )


def bench_small(rows: int, seconds: float) -> list[Result]:
    """The ops between the matrix products, at the model's sizes."""
    x, residual, weight = torch.randn(rows, 576), torch.randn(rows, 576), torch.randn(576)
    gate_up = torch.randn(rows, 3072)

    def torch_norm() -> torch.Tensor:
        return F.rms_norm(x + residual, (576,), weight, 1e-5)

    def torch_silu() -> torch.Tensor:
        return F.silu(gate_up[:, :1536]) * gate_up[:, 1536:]

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "add_rms_norm": (lambda: qk.add_rms_norm(x, residual, weight, 1e-5), torch_norm),
        "silu_mul": (lambda: qk.silu_mul(gate_up), torch_silu),
    }
    return [
        measure(f"{name} T={rows}", {"quire": ours, "torch": theirs}, seconds)
        for name, (ours, theirs) in pairs.items()
    ]


def machine() -> str:
    """The processor, the cores in use and the kernels' instruction set."""
    return f"{processor()}, {torch.get_num_threads()} threads of {os.cpu_count()}, {qk.isa()}"


def show(timing: Timing) -> str:
    return f"{timing.best:,.0f} ({timing.median:,.0f})"


def run_all(seconds: float) -> list[Result]:
    results = []
    for name in LAYERS:
        for rows in (1, 8, 32, 128, 512):
            if name != "head" or rows <= 32:
                results.append(bench_linear(name, rows, seconds))
    for name in LAYERS:
        for rows in (1, 8, 128) if name != "head" else (1, 8):
            results.append(bench_int8(name, rows, seconds))
    for case in [(1, 1, 192), (8, 1, 192), (32, 1, 192), (1, 1, 4096), (8, 1, 2048)]:
        results.append(bench_attention(*case, seconds))
    for case in [(1, 128, 128), (8, 128, 128), (1, 512, 512), (1, 512, 2048)]:
        results.append(bench_attention(*case, seconds))
    for rows in (1, 32, 512):
        results.extend(bench_small(rows, seconds))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the CPU kernels against torch.")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each case")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(machine(), f"torch {torch.__version__}\n", sep=", ")
    results = run_all(arguments.seconds)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Microseconds, best call (median). Load average: {load}.\n")
    print("| case | quire | rate | against | times faster |\n| --- | --- | --- | --- | --- |")
    for result in results:
        peers = ", ".join(f"{name} {show(timing)}" for name, timing in result.peers.items())
        print(
            f"| {result.case} | {show(result.quire)} | {result.rate} | {peers} "
            f"| {result.ratio:.2f} |"
        )
    if arguments.json:
        report = {"processor": machine(), "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
