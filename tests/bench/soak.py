"""Ten thousand requests of every kind at one real server, and what they leave behind: nothing.

    python tests/bench/soak.py [--requests 10000] [--seed 0] [--clients 48] [--growth-mib 8]
        [--results DIR]

Good requests (streams, n, stop strings, seeds, salts, shared beginnings, priorities where the
server takes them), bad ones, and clients that leave inside their body, at once or inside their
stream, all drawn from the seed. The cache is small, so that sequences are preempted. It fails
unless each request is answered, refused for cause or left; /health and /ready are right throughout;
free blocks are as at the start; neither process grows; SIGTERM ends the server with 0.

Growth: the most memory (VmRSS) that a process holds in the last quarter of the requests, above the
most that it held in the second one. By the first quarter's end all blocks of the cache, the
allocators' pools and the code have been touched.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from processor import processor
from raw_http import Answer, Connection, get, post
from soak_requests import Ask, draw

from quire_cluster.tiny_server import TINY, TinyServer, tiny_server

RESULTS = Path(__file__).parent / "results"
FLAGS = ("--max-num-seqs", "32", "--max-num-batched-tokens", "256",
         "--num-gpu-blocks-override", "128")  # fmt: skip
MODEL = replace(TINY, max_model_len=1024)
LOOK_SECONDS = 0.05
MIB = 1 << 20


@dataclass
class Watched:
    """What is seen from beside, while the requests run."""

    num_looks: int = 0
    longest_look: float = 0.0
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    """Requests done, and the bytes that API and core process hold then."""


@dataclass
class Soak:
    """One run."""

    server: TinyServer
    asks: Iterator[Ask]
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    watched: Watched = field(default_factory=Watched)

    async def run(self, num_clients: int) -> None:
        watcher = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._client() for _ in range(num_clients)))
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    async def _client(self) -> None:
        for ask in self.asks:
            try:
                end = await self._send(ask)
            except (OSError, ValueError, KeyError, IndexError) as error:
                end = "failed"
                self.failures.append(f"{ask}: {type(error).__name__} {error}")
            self.ends[end] += 1

    async def _send(self, ask: Ask) -> str:
        """How the request ended: answered, refused, or left somewhere."""
        connection = await Connection.open(self.server.port)
        raw = post(ask.path, ask.body, close=True)
        half = len(raw) - len(ask.body) // 2
        connection.writer.write(raw[:half] if ask.leave == "in the body" else raw)
        try:
            if ask.leave in ("in the body", "at once"):
                await connection.writer.drain()
                await asyncio.sleep(len(ask.body) % 7 / 500)
                return f"left {ask.leave}"
            if ask.leave == "while it streams" and b"data: [DONE]" not in (
                await connection.reader.read(400)
            ):
                return f"left {ask.leave}"
            if ask.leave == "while it streams":
                return "answered"
            return judge(ask, await connection.read_answer())
        finally:
            connection.leave()

    async def _watch(self) -> None:
        """Health all the time, memory now and then."""
        connection = await Connection.open(self.server.port)
        core = self.server.core_pid
        while True:
            for path in ("/health", "/ready"):
                begun = time.perf_counter()
                status, body = await connection.exchange(get(path))
                longest = max(self.watched.longest_look, time.perf_counter() - begun)
                self.watched.longest_look = longest
                self.watched.num_looks += 1
                if status != 200:
                    self.watched.wrong.append(f"{path}: {status} {body.decode()}")
            held = (resident_bytes(self.server.process.pid), resident_bytes(core))
            self.watched.memory.append((self.ends.total(), *held))
            await asyncio.sleep(LOOK_SECONDS)


def judge(ask: Ask, answer: Answer) -> str:
    """`answered` or `refused`; ValueError where the answer is not what the request wants."""
    if ask.is_bad:
        error = json.loads(answer.body)["error"]
        _require(400 <= answer.status < 500 and error["message"], "a 4xx that says why", answer)
        return "refused"
    _require(answer.status == 200 and answer.is_whole, "a whole answer", answer)
    texts, ends = _streamed(answer.body) if ask.stream else _whole(answer.body)
    _require(sorted(ends) == list(range(ask.num_choices)), "an end for each choice", answer)
    _require(set(ends.values()) <= {"stop", "length"}, "stop or length", answer)
    found = [stop for stop in ask.stops for text in texts.values() if stop in text]
    _require(not found, f"no stop string, got {found}", answer)
    return "answered"


def _whole(body: bytes) -> tuple[dict[int, str], dict[int, str]]:
    choices = json.loads(body)["choices"]
    texts = {c["index"]: c["message"]["content"] if "message" in c else c["text"] for c in choices}
    return texts, {choice["index"]: choice["finish_reason"] for choice in choices}


def _streamed(body: bytes) -> tuple[dict[int, str], dict[int, str]]:
    *events, done = [line[6:] for line in body.split(b"\n\n") if line]
    texts, ends = dict[int, str](), dict[int, str]()
    _require(done == b"[DONE]", "[DONE] at the end", done)
    for event in events:
        for choice in json.loads(event)["choices"]:
            index = choice["index"]
            text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            texts[index] = texts.get(index, "") + text
            if choice["finish_reason"] is not None:
                _require(index not in ends, "one end for each choice", event)
                ends[index] = choice["finish_reason"]
    return texts, ends


def _require(holds: object, rule: str, got: object) -> None:
    if not holds:
        raise ValueError(f"must be {rule}, got {got!r}")


def resident_bytes(process_id: int) -> int:
    """VmRSS (proc_pid_status(5))."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def growth(memory: list[tuple[int, int, int]], place: int) -> int:
    """Bytes: the most of the last quarter of the requests, above the most of the second one."""
    total = memory[-1][0]
    second = [held[place] for held in memory if total / 4 <= held[0] < total / 2]
    last = [held[place] for held in memory if held[0] >= total * 3 / 4]
    return max(last) - max(second)


def takes_priorities(server: TinyServer) -> bool:
    """Whether the field is served; one that is not answers 400."""

    async def ask() -> int:
        connection = await Connection.open(server.port)
        body = b'{"prompt": "a", "max_tokens": 1, "priority": 1}'
        status, _ = await connection.exchange(post("/v1/completions", body))
        connection.leave()
        return status

    return asyncio.run(ask()) == 200


def soak(options: argparse.Namespace, folder: Path) -> tuple[dict[str, object], list[str]]:
    """What was seen, and what of it must not be."""
    with tiny_server(folder, *FLAGS, model=MODEL) as server:
        priorities = takes_priorities(server)
        free, load = server.metric("quire_kv_blocks_free"), os.getloadavg()[0]
        chance = random.Random(options.seed)
        asks = (draw(chance, priorities=priorities) for _ in range(options.requests))
        run, begun = Soak(server, asks), time.perf_counter()
        asyncio.run(run.run(options.clients))
        seconds = time.perf_counter() - begun
        failures = [*run.failures, *run.watched.wrong, *_leaks(server, free)]
        preemptions = server.metric("vllm:num_preemptions_total")
        hit_rate = server.metric("vllm:prefix_cache_hits_total") / server.metric(
            "vllm:prefix_cache_queries_total"
        )
        server.process.send_signal(signal.SIGTERM)
        if (code := server.process.wait(30)) != 0:
            failures.append(f"the exit code must be 0, got {code}: {server.log.read_text()}")
    grown = {
        name: growth(run.watched.memory, place) / MIB for place, name in ((1, "api"), (2, "core"))
    }
    failures += [
        f"{name} must grow by <= {options.growth_mib} MiB, got {mib:.1f}"
        for name, mib in grown.items()
        if mib > options.growth_mib
    ]
    if run.ends.total() != options.requests:
        failures.append(f"each request must end, got {run.ends.total()} of {options.requests}")
    return {
        "requests": options.requests,
        "seed": options.seed,
        "clients": options.clients,
        "priorities": priorities,
        "seconds": round(seconds, 1),
        "ends": dict(sorted(run.ends.items())),
        "preemptions": preemptions,
        "prefix_cache_hit_rate": round(hit_rate, 3),
        "free_blocks": free,
        "health_looks": run.watched.num_looks,
        "longest_look_ms": round(run.watched.longest_look * 1000, 1),
        "grown_mib": {name: round(mib, 2) for name, mib in grown.items()},
        "growth_bound_mib": options.growth_mib,
        "held_mib": {name: round(run.watched.memory[-1][place] / MIB, 1)
                     for place, name in ((1, "api"), (2, "core"))},
        "machine": {"processor": processor(), "cpus": os.cpu_count(),
                    "load": [round(load, 2), round(os.getloadavg()[0], 2)]},
        "failures": failures[:20],
    }, failures  # fmt: skip


def _leaks(server: TinyServer, free: float) -> list[str]:
    """What is still held a while after the last client has left."""
    with contextlib.suppress(AssertionError):
        server.eventually(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, 10)
    held = {
        "vllm:num_requests_running": 0.0,
        "vllm:num_requests_waiting": 0.0,
        "vllm:kv_cache_usage_perc": 0.0,
        "quire_kv_blocks_free": free,
    }
    seen = {name: server.metric(name) for name in held}
    return [f"{name} must be {held[name]} again, got {seen[name]}"
            for name in held if seen[name] != held[name]]  # fmt: skip


def table(result: dict[str, object]) -> str:
    """The report for people."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {told(value)} |"
                     for name, value in result.items())  # fmt: skip
    return f"A seeded soak of one real server (`make soak`).\n\n| | |\n| --- | --- |\n{rows}\n"


def told(value: object) -> str:
    """A value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--growth-mib", type=float, default=8.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, failures = soak(options, Path(folder))
    (options.results / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.results / "soak.md").write_text(table(result))
    print(table(result))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
