"""The CPU kernels against torch: `python tests/bench/bench_kernels.py [--json FILE]`.

Every figure is the median of interleaved calls in one process, so that what else the machine does
falls on both sides alike; beside it stands the ratio of the medians. Weights are walked through in
several copies that together exceed the caches, as a model's layers do.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import quire_kernels as qk

# SmolLM2-135M: fused QKV, fused gate and up, down, and the tied head
LAYERS = {"qkv": (960, 576), "gate_up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
HEADS, KV_HEADS, DIM, BLOCK = 9, 3, 64, 16
CACHE_FILL_BYTES = 100e6


@dataclass(frozen=True)
class Result:
    """Medians in microseconds; `ratio` is the first peer's over ours."""

    case: str
    quire_us: float
    peers_us: dict[str, float]
    ratio: float
    note: str  # rate reached


def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median microseconds of each call, called in turn for about `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(calls))]) < 5:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - begin) * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


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
    medians = interleaved(
        {
            "quire": in_turn(packed, lambda weight: qk.linear(x, weight)),
            "torch fp32": in_turn(wide, lambda weight: F.linear(x, weight)),
            "torch bf16": in_turn(narrow, lambda weight: F.linear(x16, weight)),
        },
        seconds,
    )
    ours = medians.pop("quire")
    flops, size = 2 * rows * columns * depth, 2 * columns * depth
    note = f"{flops / ours / 1e3:.0f} GFLOP/s" if rows > 4 else f"{size / ours / 1e3:.1f} GB/s"
    return Result(f"linear {name} T={rows}", ours, medians, medians["torch fp32"] / ours, note)


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
    medians = interleaved(
        {
            "quire": lambda: qk.paged_attention(
                query, caches[0], caches[1], starts, lens, tables, DIM**-0.5
            ),
            "torch sdpa": lambda: F.scaled_dot_product_attention(
                dense, keys, values, attn_mask=None if num_queries == 1 else mask
            ),
        },
        seconds,
    )
    ours = medians.pop("quire")
    kind = "decode" if num_queries == 1 else f"prefill {num_queries}"
    case = f"attention {kind} B={num_seqs} L={length}"
    read = 8 * num_seqs * length * KV_HEADS * DIM
    seen = sum(length - i for i in range(num_queries))
    rate = 4 * num_seqs * HEADS * DIM * seen / ours / 1e3
    note = f"{read / ours / 1e3:.1f} GB/s" if num_queries == 1 else f"{rate:.0f} GFLOP/s"
    return Result(case, ours, medians, medians["torch sdpa"] / ours, note)


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
    results = []
    for name, (ours, theirs) in pairs.items():
        medians = interleaved({"quire": ours, "torch": theirs}, seconds)
        mine = medians.pop("quire")
        results.append(Result(f"{name} T={rows}", mine, medians, medians["torch"] / mine, ""))
    return results


def processor() -> str:
    """Model name, cores in use and the kernels' instruction set."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}, {qk.isa()}"


def run_all(seconds: float) -> list[Result]:
    results = []
    for name in LAYERS:
        for rows in (1, 8, 32, 128, 512):
            if name != "head" or rows <= 32:
                results.append(bench_linear(name, rows, seconds))
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
    print(processor(), f"torch {torch.__version__}\n", sep=", ")
    results = run_all(arguments.seconds)
    print("| case | quire µs | rate | peers µs | times faster |\n| --- | --- | --- | --- | --- |")
    for result in results:
        peers = ", ".join(f"{name} {value:,.0f}" for name, value in result.peers_us.items())
        print(
            f"| {result.case} | {result.quire_us:,.1f} | {result.note} | {peers} "
            f"| {result.ratio:.2f} |"
        )
    if arguments.json:
        report = {"processor": processor(), "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
