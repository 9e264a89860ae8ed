"""What the API process costs: a real server process around a fake core that costs (almost) nothing.

    python tests/bench/bench_api.py [--requests 1000] [--streams 1000] [--seconds 10] [--runs 3]
        [--against DIR] [--results DIR]

By a client that parses nothing, and shares the machine's processors with the server and the fake
core (its own share is told):

- `request`: a completion of one token, one after the other on one warm keep-alive connection, from
  the first byte written to the last one read. Two hops between API and core process are in it, and
  the core's step, which takes no time. `models` is a GET on the same connection that the API
  process answers alone: what the HTTP stack costs. Both also in the API process's own time.
- `tokens_per_second`: over all streams at once, from a second after the last stream's first token
  on. The core offers TOKENS_A_SECOND to each stream, in all more than the goal of 20,000; what the
  API process cannot write in time comes later, or several tokens an event (`tokens_per_event`).
- `loop_longest_block`: how long the event loop was kept from everything else in that time, by the
  clock and of that on a processor (serve_watched.py tells); `opening_longest_block` the same while
  all the streams' requests came at once.

`--against` is another checkout of this repository: both are measured, in turns, by this bench, and
their ratio is told.
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
TOKENS_A_SECOND = 25  # of one stream, where nothing is late
WORD = " fox"  # one token; the fake core says it again and again
SETTLE_SECONDS = 1.0
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


async def measure_requests(served: Served, count: int) -> Figures:
    """A request for one token, and one for none."""
    await until_ready(served.port)
    connection = await Connection.open(served.port)
    asked = completion(prompt="The quick brown fox jumps over the lazy dog.", max_tokens=1)
    figures: Figures = {}
    for name, raw in (("request", asked), ("models", get("/v1/models"))):
        await _times(connection, raw, WARM_UP_REQUESTS)
        api = cpu_seconds(served.process_id)
        times = await _times(connection, raw, count)
        api = cpu_seconds(served.process_id) - api
        figures[f"{name}_p50_ms"] = statistics.median(times)
        figures[f"{name}_p99_ms"] = times[count * 99 // 100]
        figures[f"{name}_api_cpu_ms"] = api / count * 1000
    return figures


async def _times(connection: Connection, raw: bytes, count: int) -> list[float]:
    """Milliseconds, the shortest first."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        status, body = await connection.exchange(raw)
        if status != 200:
            raise ValueError(f"the answer must be 200, got {status} {body!r}")
        times.append((time.perf_counter() - begun) * 1000)
    return sorted(times)


class Counted(asyncio.Protocol):
    """One stream: asks, and counts what comes."""

    streams = tokens = events = 0  # over all: that have a token, tokens, events
    _has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = completion(prompt=WORD, max_tokens=4000, stream=True)
        cast("asyncio.WriteTransport", transport).write(raw)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        Counted.tokens += data.count(WORD.encode())
        Counted.events += data.count(b"data: ")
        if not self._has_begun:
            self._has_begun = True
            Counted.streams += 1


def cpu_seconds(process_id: int) -> float:
    """User and system time of one process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure_streams(served: Served, streams: int, seconds: float) -> Figures:
    """Tokens a second over `streams` open streams, and who paid what for them."""
    await until_ready(served.port)
    loop, opened, Counted.streams, opening = asyncio.get_running_loop(), [], 0, time.monotonic()
    for _ in range(streams):
        opened.append(await loop.create_connection(Counted, "127.0.0.1", served.port))
    while Counted.streams < streams:
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_SECONDS)
    api, own = cpu_seconds(served.process_id), time.process_time()
    before, events, begun = Counted.tokens, Counted.events, time.monotonic()
    await asyncio.sleep(seconds)
    tokens, events, ended = Counted.tokens - before, Counted.events - events, time.monotonic()
    api, own = cpu_seconds(served.process_id) - api, time.process_time() - own
    for transport, _ in opened:
        transport.close()
    took = ended - begun
    return {
        "tokens_per_second": tokens / took,
        "tokens_per_event": tokens / events,
        "api_cpu_us_per_token": api / tokens * 1e6,
        "api_cpu_share": api / took,
        "client_cpu_share": own / took,
        "opening": opening,
        "begun": begun,
        "ended": ended,
    }


def longest_block(blocks: Path, figures: Figures) -> Figures:
    """Milliseconds that the loop did nothing else: by the clock, and of that on a processor."""
    opening, begun, ended = (figures.pop(name) for name in ("opening", "begun", "ended"))
    told = [[float(word) for word in line.split()] for line in blocks.read_text().splitlines()]
    late = [(wall, busy) for when, wall, busy in told if begun <= when <= ended]
    first = [(wall, busy) for when, wall, busy in told if opening <= when < begun]
    return {
        **figures,
        "loop_longest_block_ms": max((wall for wall, _ in late), default=0.0) * 1000,
        "loop_longest_busy_ms": max((min(pair) for pair in late), default=0.0) * 1000,
        "opening_longest_block_ms": max((wall for wall, _ in first), default=0.0) * 1000,
        "opening_longest_busy_ms": max((min(pair) for pair in first), default=0.0) * 1000,
    }


def _run(measurement: Coroutine[None, None, Figures]) -> Figures:
    """On the loop that costs the machine least."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measurement)


def measure(model: str, checkout: Path | None, options: argparse.Namespace) -> Figures:
    """One run of all."""
    with server(model, checkout, step_seconds=0, max_num_seqs=64) as served:
        requests = _run(measure_requests(served, options.requests))
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
    parser.add_argument("--requests", type=int, default=1000)
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
