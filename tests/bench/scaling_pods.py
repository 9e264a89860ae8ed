"""Answers /metrics for thousands of pods that only exist in the API: python scaling_pods.py PORT.

Each page is the engine's own, of an engine with one running request, made anew in its time only.
Pods on the last address hang as long as the file `--hang-while` exists: they take the connection
and never answer.
"""

import argparse
import asyncio
import time
from pathlib import Path

from quire_engine.api.metrics import Metrics
from quire_engine.messages import CoreReady, CoreStats

HANGING = "192.0.2.250"
_TIME = b"quire_metrics_time_seconds "


class _Core:
    """An engine at work on one request."""

    num_running, num_waiting = 1, 0
    ready: CoreReady | None = None
    stats = CoreStats(
        num_running=1,
        num_waiting=0,
        kv_cache_usage=0.1,
        num_preemptions=0,
        prefix_cache_queries=0,
        prefix_cache_hits=0,
        prompt_tokens=0,
        generation_tokens=0,
        step_tokens=1,
    )


def page() -> tuple[bytes, bytes]:
    """The engine's page, in two parts around the time at which it was made."""
    metrics = Metrics("bench")
    metrics.watch(_Core())
    before, _, after = metrics.exposition().partition(b"\n" + _TIME)
    return before + b"\n" + _TIME, b"\n" + after.partition(b"\n")[2]


class _Pod(asyncio.Protocol):
    """One connection: one request, one answer."""

    def __init__(self, before: bytes, after: bytes, hang_while: Path) -> None:
        self._before, self._after = before, after
        self._hang_while = hang_while

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            return
        address = self._transport.get_extra_info("sockname")[0]
        if address == HANGING and self._hang_while.exists():
            return
        body = b"%s%.6f%s" % (self._before, time.time(), self._after)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)
        self._transport.close()


async def serve(port: int, hang_while: Path) -> None:
    before, after = page()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Pod(before, after, hang_while),
        "0.0.0.0",
        port,
        backlog=4096,
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--hang-while", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.hang_while))


if __name__ == "__main__":
    main()
