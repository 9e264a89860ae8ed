"""What the API process costs: a real server process around a fake core that costs (almost) nothing.

    python tests/bench/bench_api.py [--requests 500] [--streams 1000] [--seconds 10] [--json FILE]

Three measures, on one keep-alive connection or as many as there are streams, by a client that
parses nothing: the time a short request takes when the model takes none; tokens a second over many
open streams; how long /health waits meanwhile, which is how long the event loop was busy. The
client shares the machine.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from processor import processor

from quire_engine.config import EngineConfig
from quire_engine.settings import ServerSettings

SERVE_FAKE = Path(__file__).parent.parent / "engine" / "api" / "serve_fake.py"
TOKENS_A_SECOND = 20  # of one stream


@contextmanager
def server(model: str, *, step_seconds: float, max_num_seqs: int) -> Iterator[tuple[int, int]]:
    """A server process around the fake core; its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    settings = ServerSettings(
        model=model, served_model_names=("fake",), host="127.0.0.1", port=port
    )
    config = EngineConfig(model=model, max_num_seqs=max_num_seqs)
    environment = {"FAKE_STEP_SECONDS": str(step_seconds), "FAKE_VOCAB_SIZE": "1000000"}
    process = subprocess.Popen(
        [sys.executable, str(SERVE_FAKE), msgspec.json.encode(settings).decode(),
         config.to_json().decode()],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def post(body: dict[str, object]) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n"


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def exchange(self, raw: bytes) -> tuple[int, bytes]:
        """Send a request, read the whole answer with a Content-Length."""
        self.writer.write(raw)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split(b" ", 2)[1]), await self.reader.readexactly(length)


async def until_ready(port: int) -> None:
    while True:
        try:
            connection = await Connection.open(port)
            status, _ = await connection.exchange(GET_HEALTH.replace(b"/health", b"/ready"))
            connection.writer.close()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)


async def measure_requests(port: int, count: int) -> dict[str, float]:
    """Milliseconds of a request for one token, one after the other."""
    await until_ready(port)
    connection = await Connection.open(port)
    raw = post({"prompt": "The quick brown fox jumps over the lazy dog.", "max_tokens": 1})
    times = []
    for index in range(count + 50):
        begun = time.perf_counter()
        status, body = await connection.exchange(raw)
        assert status == 200, body
        if index >= 50:  # warm
            times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return {"p50_ms": statistics.median(times), "p99_ms": times[int(count * 0.99)]}


class Count:
    """Events that came, over all streams."""

    tokens = 0


async def read_stream(port: int, count: Count) -> None:
    connection = await Connection.open(port)
    connection.writer.write(
        post({"prompt": "The quick brown fox", "max_tokens": 4000, "stream": True})
    )
    while data := await connection.reader.read(65536):
        count.tokens += data.count(b"data: ")


async def watch_health(port: int, times: list[float]) -> None:
    connection = await Connection.open(port)
    while True:
        begun = time.perf_counter()
        await connection.exchange(GET_HEALTH)
        times.append((time.perf_counter() - begun) * 1000)
        await asyncio.sleep(0.02)


def cpu_seconds(process_id: int) -> float:
    """User and system time of one process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure_streams(
    port: int, process_id: int, streams: int, seconds: float
) -> dict[str, float]:
    """Tokens a second over `streams` open streams, and the waits of /health meanwhile."""
    await until_ready(port)
    count, health = Count(), list[float]()
    tasks = [asyncio.create_task(read_stream(port, count)) for _ in range(streams)]
    while count.tokens < streams * 2:
        await asyncio.sleep(0.1)
    watcher = asyncio.create_task(watch_health(port, health))
    before, begun, cpu_before = count.tokens, time.perf_counter(), cpu_seconds(process_id)
    await asyncio.sleep(seconds)
    tokens, took = count.tokens - before, time.perf_counter() - begun
    cpu = cpu_seconds(process_id) - cpu_before
    for task in (*tasks, watcher):
        task.cancel()
    await asyncio.gather(*tasks, watcher, return_exceptions=True)
    health.sort()
    return {
        "events_per_second": tokens / took,
        "api_cpu_us_per_event": cpu / tokens * 1e6,
        "api_cpu_share": cpu / took,
        "asked_per_second": streams * TOKENS_A_SECOND,
        "health_p50_ms": statistics.median(health),
        "health_p99_ms": health[int(len(health) * 0.99)],
        "health_max_ms": health[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="~/.cache/quire/models/SmolLM2-135M-Instruct")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = str(Path(arguments.model).expanduser())
    with server(model, step_seconds=0, max_num_seqs=64) as (port, _):
        requests = asyncio.run(measure_requests(port, arguments.requests))
    with server(model, step_seconds=1 / TOKENS_A_SECOND, max_num_seqs=arguments.streams) as (
        port,
        process_id,
    ):
        streams = asyncio.run(
            measure_streams(port, process_id, arguments.streams, arguments.seconds)
        )
    machine = {"processor": processor(), "cpus": os.cpu_count(),
               "load": os.getloadavg()[0]}  # fmt: skip
    result = {"request": requests, "streams": streams, "machine": machine}
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
