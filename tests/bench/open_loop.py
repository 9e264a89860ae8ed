"""Requests that come when they come, however long the answers take, and what a client sees of them.

An open loop: a server that is late does not slow the arrivals down. Times to first token count from
when a request was due, so that a client that lags tells it. One process, which writes each request
by hand and looks into the events of the answer for no more than text and end.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from raw_http import Connection, post

PATH = "/v1/completions"
GOOD_TTFT_SECONDS = 2.0
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Request:
    """When it is due, in seconds after the begin, and what it asks for."""

    due: float
    body: bytes
    answer_len: int


@dataclass
class Trace:
    """What came of one request; seconds after the begin."""

    due: float
    answer_len: int
    texts: list[float] = field(default_factory=list)  # when each event with text came
    is_answered: bool = False  # to its full length
    is_refused: bool = False  # a status other than 200
    is_broken: bool = False  # the connection ended before the answer did

    @property
    def ttft(self) -> float:
        """Seconds to the first text; inf where none came."""
        return self.texts[0] - self.due if self.texts else math.inf

    @property
    def num_tokens(self) -> int:
        """An event has one token at least; that of an unfinished answer counts as one."""
        return self.answer_len if self.is_answered else len(self.texts)


@dataclass(frozen=True)
class Run:
    """All requests of a rate."""

    traces: list[Trace]
    seconds: float  # from the begin to the last answer, or until the bound
    client_cpu_seconds: float


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """A Poisson process. The same seed at twice the rate: the same arrivals in half the time."""
    chance, due, times = random.Random(seed), 0.0, list[float]()
    while (due := due + chance.expovariate(1.0) / rate) < seconds:
        times.append(due)
    return times


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None where there is no value, or that one is infinite."""
    if not values:
        return None
    value = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    return None if math.isinf(value) else value


def figures(run: Run, num_cpus: int) -> Figures:
    """What the report tells of a rate."""
    traces, count = run.traces, len(run.traces)
    ttfts = [trace.ttft for trace in traces]
    gaps = [(after - before) * 1000 for trace in traces for before, after in pairwise(trace.texts)]
    told: Figures = {
        "sent": count,
        "answered": sum(trace.is_answered for trace in traces),
        "refused": sum(trace.is_refused for trace in traces),
        "broken": sum(trace.is_broken for trace in traces),
        "seconds": run.seconds,
        "asked_tokens": sum(trace.answer_len for trace in traces),
        "output_tokens_per_second": sum(trace.num_tokens for trace in traces) / run.seconds,
        "ttft_p50_seconds": percentile(ttfts, 50),
        "ttft_p99_seconds": percentile(ttfts, 99),
        "between_tokens_p50_ms": percentile(gaps, 50),
        "between_tokens_p99_ms": percentile(gaps, 99),
        "good_share": sum(ttft <= GOOD_TTFT_SECONDS for ttft in ttfts) / count,
        "client_cpu_share": run.client_cpu_seconds / run.seconds / num_cpus,
    }
    return {
        name: value if value is None else round(value, 2 if name[-2:] == "ms" else 4)
        for name, value in told.items()
    }


async def send_all(port: int, requests: Sequence[Request], bound_seconds: float) -> Run:
    """Each when it is due; what is not answered `bound_seconds` after the begin is given up."""
    begin, cpu = time.perf_counter(), time.process_time()
    traces = [Trace(request.due, request.answer_len) for request in requests]
    pending: set[asyncio.Task[None]] = set()
    for request, trace in zip(requests, traces, strict=True):
        await asyncio.sleep(begin + request.due - time.perf_counter())
        pending.add(asyncio.create_task(_ask(port, request, begin, trace)))
    done, late = await asyncio.wait(pending, timeout=begin + bound_seconds - time.perf_counter())
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()
    return Run(traces, seconds, cpu)


async def _ask(port: int, request: Request, begin: float, trace: Trace) -> None:
    try:
        connection = await Connection.open(port)
    except OSError:
        trace.is_broken = True
        return
    try:
        connection.writer.write(post(PATH, request.body, close=True))
        trace.is_refused = await connection.read_head() != 200
        if not trace.is_refused:
            await _read_events(connection, begin, trace)
    except (OSError, EOFError):  # IncompleteReadError is an EOFError
        trace.is_broken = True
    finally:
        connection.leave()


async def _read_events(connection: Connection, begin: float, trace: Trace) -> None:
    rest = b""
    async for chunk in connection.chunks():
        now = time.perf_counter() - begin
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                note(json.loads(line[6:]), now, trace)


def note(event: dict, now: float, trace: Trace) -> None:
    """What an event of the answer tells. Ended by anything but its length, it is not answered."""
    for choice in event.get("choices", ()):
        if choice.get("text"):
            trace.texts.append(now)
        if choice.get("finish_reason"):
            trace.is_answered = choice["finish_reason"] == "length"
