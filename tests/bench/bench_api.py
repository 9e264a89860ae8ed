"""What the API process costs: a real server process around a fake core that costs (almost) nothing.

    python tests/bench/bench_api.py [--requests 500] [--streams 1000] [--seconds 10] [--runs 3]
        [--against DIR] [--results DIR]

Measures, by a client that parses nothing, on one keep-alive connection or as many as there are
streams: the time that a short request takes when the model takes none, tokens a second over many
open streams, and how long the event loop was kept from everything else meanwhile (serve_watched.py
tells). The client shares the machine; its own share of a processor is told. `--against` is another
checkout of this repository: both are measured, in turns, and their ratio is told.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from processor import processor
from raw_http import Connection, get, post

from quire_engine.config import EngineConfig
from quire_engine.settings import ServerSettings

SERVE = Path(__file__).parent / "serve_watched.py"
RESULTS = Path(__file__).parent / "results"
TOKENS_A_SECOND = 20  # of one stream, where nothing is late
WARM_UP_REQUESTS = 50
READY_SECONDS = 60
Figures = dict[str, float]


@dataclass(frozen=True)
class Served:
    """A server process around the fake core."""

    port: int
    process_id: int
    blocks_file: Path


@contextmanager
def server(
    model: str, checkout: Path | None, *, step_seconds: float, max_num_seqs: int
) -> Iterator[Served]:
    """One of this checkout's, or of another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    settings = ServerSettings(
        model=model, served_model_names=("fake",), host="127.0.0.1", port=port
    )
    config = EngineConfig(model=model, max_num_seqs=max_num_seqs)
    environment = {**os.environ, "FAKE_STEP_SECONDS": str(step_seconds)}
    if checkout is not None:
        environment["PYTHONPATH"] = f"{checkout / 'engine'}:{checkout / 'kernels'}"
    with tempfile.TemporaryDirectory() as folder:
        blocks = Path(folder) / "blocks"
        process = subprocess.Popen(
            [sys.executable, str(SERVE), msgspec.json.encode(settings).decode(),
             config.to_json().decode(), str(blocks)],
            env={**environment, "FAKE_VOCAB_SIZE": "1000000"},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield Served(port, process.pid, blocks)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


async def until_ready(port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            connection = await Connection.open(port)
            status, _ = await connection.exchange(get("/ready"))
            connection.leave()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError(f"the server must be ready within {READY_SECONDS} s")


def completion(**fields: object) -> bytes:
    return post("/v1/completions", json.dumps(fields).encode())


async def measure_requests(port: int, count: int) -> Figures:
    """Milliseconds of a request for one token, one after the other."""
    await until_ready(port)
    connection = await Connection.open(port)
    raw = completion(prompt="The quick brown fox jumps over the lazy dog.", max_tokens=1)
    times = []
    for _ in range(count + WARM_UP_REQUESTS):
        begun = time.perf_counter()
        status, body = await connection.exchange(raw)
        if status != 200:
            raise ValueError(f"the answer must be 200, got {status} {body!r}")
        times.append((time.perf_counter() - begun) * 1000)
    times = sorted(times[WARM_UP_REQUESTS:])
    return {"request_p50_ms": statistics.median(times), "request_p99_ms": times[count * 99 // 100]}


class Counted(asyncio.Protocol):
    """One stream: asks, and counts the events that come."""

    tokens = 0  # over all streams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = completion(prompt="The quick brown fox", max_tokens=4000, stream=True)
        cast("asyncio.WriteTransport", transport).write(raw)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        Counted.tokens += data.count(b"data: ")


def cpu_seconds(process_id: int) -> float:
    """User and system time of one process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure_streams(served: Served, streams: int, seconds: float) -> Figures:
    """Tokens a second over `streams` open streams, and who paid what for them."""
    await until_ready(served.port)
    loop, opened, Counted.tokens = asyncio.get_running_loop(), [], 0
    for _ in range(streams):
        opened.append(await loop.create_connection(Counted, "127.0.0.1", served.port))
    while Counted.tokens < streams * 2:
        await asyncio.sleep(0.1)
    api, own = cpu_seconds(served.process_id), time.process_time()
    before, begun = Counted.tokens, time.monotonic()
    await asyncio.sleep(seconds)
    tokens, ended = Counted.tokens - before, time.monotonic()
    api, own = cpu_seconds(served.process_id) - api, time.process_time() - own
    for transport, _ in opened:
        transport.close()
    took = ended - begun
    return {
        "tokens_per_second": tokens / took,
        "api_cpu_us_per_token": api / tokens * 1e6,
        "api_cpu_share": api / took,
        "client_cpu_share": own / took,
        "begun": begun,
        "ended": ended,
    }


def longest_block(blocks: Path, figures: Figures) -> Figures:
    """Milliseconds that the loop did nothing else: by the clock, and of that on a processor."""
    begun, ended = figures.pop("begun"), figures.pop("ended")
    told = [[float(word) for word in line.split()] for line in blocks.read_text().splitlines()]
    late = [(wall, busy) for when, wall, busy in told if begun <= when <= ended]
    return {
        **figures,
        "loop_longest_block_ms": max((wall for wall, _ in late), default=0.0) * 1000,
        "loop_longest_busy_ms": max((min(pair) for pair in late), default=0.0) * 1000,
    }


def _run(measurement: Coroutine[None, None, Figures]) -> Figures:
    """On the loop that costs the machine least."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measurement)


def measure(model: str, checkout: Path | None, options: argparse.Namespace) -> Figures:
    """One run of all."""
    with server(model, checkout, step_seconds=0, max_num_seqs=64) as served:
        requests = _run(measure_requests(served.port, options.requests))
    pace, seats = 1 / TOKENS_A_SECOND, options.streams
    with server(model, checkout, step_seconds=pace, max_num_seqs=seats) as served:
        streams = _run(measure_streams(served, options.streams, options.seconds))
        os.kill(served.process_id, signal.SIGTERM)
        os.kill(served.process_id, signal.SIGINT)  # what still runs is aborted
        os.waitid(os.P_PID, served.process_id, os.WEXITED | os.WNOWAIT)
        streams = longest_block(served.blocks_file, streams)
    return {name: round(value, 3) for name, value in (requests | streams).items()}


def medians(runs: list[Figures]) -> Figures:
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def table(result: dict[str, object]) -> str:
    """The report for people."""
    now, machine = result["medians"], result["machine"]
    assert isinstance(now, dict)
    assert isinstance(machine, dict)
    before, ratios = result.get("medians_against", {}), result.get("ratios", {})
    assert isinstance(before, dict)
    assert isinstance(ratios, dict)
    head = "| | now |" + (" before | ratio |" if before else "")
    rows = [
        f"| {name.replace('_', ' ')} | {value} |"
        + (f" {before[name]} | {ratios[name]} |" if before else "")
        for name, value in now.items()
    ]
    return (
        f"{machine['processor']}, {machine['cpus']} cores, load average {machine['load']}; "
        f"{result['streams']} streams, a model that costs nothing, client on the same cores; "
        f"medians of {result['num_runs']} interleaved runs\n\n"
        + "\n".join([head, "| --- " * (4 if before else 2) + "|", *rows])
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="~/.cache/quire/models/SmolLM2-135M-Instruct")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    model, load = str(Path(options.model).expanduser()), os.getloadavg()[0]
    now, before = list[Figures](), list[Figures]()
    for _ in range(options.runs):
        if options.against is not None:
            before.append(measure(model, options.against.absolute(), options))
        now.append(measure(model, None, options))
        print(now[-1], flush=True)
    result: dict[str, object] = {
        "medians": medians(now),
        "runs": now,
        "num_runs": options.runs,
        "streams": options.streams,
        "machine": {"processor": processor(), "cpus": os.cpu_count(),
                    "load": [round(load, 2), round(os.getloadavg()[0], 2)]},
    }  # fmt: skip
    if before:
        old, new = medians(before), medians(now)
        ratios = {name: round(new[name] / old[name], 2) for name in new if old[name]}
        result |= {"medians_against": old, "runs_against": before, "ratios": ratios}
    (options.results / "api.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.results / "api.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
