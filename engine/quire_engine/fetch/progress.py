"""How far a fetch is: counted by the downloads, read by HTTP and the log."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, TypeAlias

import msgspec

Phase: TypeAlias = Literal["listing", "downloading", "verifying", "done", "failed"]
RATE_SECONDS = 10.0  # the rate is that of the last ten seconds


class ProgressReport(msgspec.Struct, frozen=True, rename="camel"):
    """The body of GET /progress."""

    phase: Phase
    bytes_total: int
    bytes_done: int  # of model and adapters, those of earlier runs included
    bytes_per_second: float
    eta_seconds: float | None  # None while there is no rate to tell it from
    commit: str
    note: str = ""  # what is being waited for, when something is


class Progress:
    """The counters. One thread writes, any thread reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase: Phase = "listing"
        self.commit = ""
        self.note = ""
        self.bytes_total = 0
        self.bytes_done = 0
        self.bytes_fetched = 0  # over the network, in this run
        self.bytes_before = 0  # of what was brought before it in the same run
        self.fetched_before = 0
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def received(self, num_bytes: int) -> None:
        """So many bytes came over the network."""
        self.bytes_done += num_bytes
        self.bytes_fetched += num_bytes
        self.note = ""
        now = self._clock()
        if now - self._samples[-1][0] >= RATE_SECONDS / 50:
            self._samples.append((now, self.bytes_fetched))
            while self._samples[1][0] <= now - RATE_SECONDS:
                self._samples.popleft()

    def next_content(self) -> None:
        """What was fetched so far is whole; the counters begin anew with what comes next."""
        self.bytes_before += self.bytes_total
        self.fetched_before += self.bytes_fetched
        self.phase, self.commit = "listing", ""
        self.bytes_total = self.bytes_done = self.bytes_fetched = 0
        self._samples = deque([(self._clock(), 0)])

    def report(self) -> ProgressReport:
        rate = self._rate() if self.phase == "downloading" else 0.0
        left = self.bytes_total - self.bytes_done
        eta = round(left / rate, 1) if rate > 0 else (0.0 if self.phase == "done" else None)
        return ProgressReport(
            self.phase,
            self.bytes_before + self.bytes_total,
            self.bytes_before + self.bytes_done,
            round(rate, 1),
            eta,
            self.commit,
            self.note,
        )

    def _rate(self) -> float:
        """Bytes a second since the youngest sample that is ten seconds old, or since the begin."""
        now, samples = self._clock(), list(self._samples)
        old = [sample for sample in samples if sample[0] <= now - RATE_SECONDS]
        begin, fetched = old[-1] if old else samples[0]
        seconds = min(now - begin, RATE_SECONDS)
        return (self.bytes_fetched - fetched) / seconds if seconds > 0 else 0.0


@contextlib.contextmanager
def served(progress: Progress, port: int | None) -> Iterator[int | None]:
    """Answer GET /progress on `port` from a thread, whatever the downloads are waiting for.

    Yields the port that was bound; None when `port` is None.
    """
    if port is None:
        yield None
        return
    server = ThreadingHTTPServer(("", port), _handler(progress))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="progress", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(progress: Progress) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # a client that says nothing holds no thread for long

        def do_GET(self) -> None:
            if self.path != "/progress":
                self.send_error(404)
                return
            body = msgspec.json.encode(progress.report())
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its base's name
            """A poll a second belongs in no log."""

    return Handler
