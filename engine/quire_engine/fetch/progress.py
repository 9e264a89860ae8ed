"""How far a fetch is: counted by the downloads, read by HTTP and the log."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, TypeAlias

import msgspec

from quire_engine.errors import FetchFailed
from quire_engine.redaction import ADDRESSES_ONLY, Redactor

Phase: TypeAlias = Literal["listing", "downloading", "verifying", "done", "failed"]
RATE_SECONDS = 10.0  # the rate is that of the last ten seconds
TROUBLE_SECONDS = 8.0
"""Without a byte, after which a fetch says so: whoever asks is to hear of it within 15 s."""


class ProgressReport(msgspec.Struct, frozen=True, rename="camel"):
    """The body of GET /progress."""

    phase: Phase
    bytes_total: int  # 0 until the model's are known: adapters alone say nothing of it
    bytes_done: int  # of model and adapters, those of earlier runs included
    bytes_per_second: float
    eta_seconds: float | None  # None while there is no rate to tell it from
    commit: str
    note: str = ""  # what is being waited for, when something is
    reason: str = ""  # as it would end, of trouble that lasts while it is tried again


class Progress:
    """The counters. One thread writes, any thread reads."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, redact: Redactor = ADDRESSES_ONLY
    ) -> None:
        self.phase: Phase = "listing"
        self.commit = ""
        self.note = ""
        self.adapter = ""  # whose bytes these are; empty: the model's
        self.trouble: FetchFailed | None = None  # what an attempt failed of, until something comes
        self.bytes_total = 0
        self.bytes_done = 0
        self.bytes_fetched = 0  # over the network, in this run
        self.bytes_before = 0  # of what was brought before it in the same run
        self.fetched_before = 0
        self._redact, self._clock = redact, clock
        self._heard_at = clock()
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def received(self, num_bytes: int) -> None:
        """So many bytes came over the network."""
        self.bytes_done += num_bytes
        self.bytes_fetched += num_bytes
        self.renew()
        now = self._clock()
        if now - self._samples[-1][0] >= RATE_SECONDS / 50:
            self._samples.append((now, self.bytes_fetched))
            while self._samples[1][0] <= now - RATE_SECONDS:
                self._samples.popleft()

    def next_content(self) -> None:
        """What was fetched so far is whole; the counters begin anew with what comes next."""
        self.bytes_before += self.bytes_total
        self.fetched_before += self.bytes_fetched
        self.phase, self.commit, self.adapter = "listing", "", ""
        self.bytes_total = self.bytes_done = self.bytes_fetched = 0
        self._samples = deque([(self._clock(), 0)])
        self.renew()

    def renew(self) -> None:
        """Nothing is wrong: something came, or has only just been asked for."""
        self.trouble, self._heard_at = None, self._clock()

    def _waits_for(self) -> tuple[str, str]:
        """In words, and the reason of trouble that has lasted."""
        trouble, is_long = self.trouble, self._clock() - self._heard_at >= TROUBLE_SECONDS
        if trouble is not None:
            return str(trouble), trouble.reason if is_long else ""
        if is_long and not self.note and self.phase in ("listing", "downloading"):
            return f"the source has sent nothing for {TROUBLE_SECONDS:g} s", ""
        return self.note or (f"adapter {self.adapter}" if self.adapter else ""), ""

    def report(self) -> ProgressReport:
        rate = self._rate() if self.phase == "downloading" else 0.0
        left = self.bytes_total - self.bytes_done
        eta = round(left / rate, 1) if rate > 0 else (0.0 if self.phase == "done" else None)
        note, reason = self._waits_for()
        is_told = bool(self.bytes_total) and not self.adapter
        return ProgressReport(
            self.phase,
            self.bytes_before + self.bytes_total if is_told else 0,
            self.bytes_before + self.bytes_done if is_told else 0,
            round(rate, 1),
            eta if is_told else None,
            "" if self.adapter else self.commit,
            self._redact(note),
            reason,
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
