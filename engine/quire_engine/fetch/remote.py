"""Reading pieces of remote files: for headers, not for downloads."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from quire_engine.fetch.errors import Corrupt
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import Backoff, TryAgain
from quire_engine.fetch.source import Listing, RemoteFile
from quire_engine.fetch.sources import Source, open_source
from quire_engine.fetch.uri import ModelUri

T = TypeVar("T")
PATIENCE_SECONDS = 10.0
"""Of trouble in a row, then it is told: a plan is asked for again, by whoever asked, and until it
ends nobody hears of it."""
MOST_BYTES = 256 * 1024**2
"""Of one reader's reads. The headers of the largest models have 20 MB, a GGUF's vocabulary some."""


class RemoteReader:
    """A listing and a few range reads of one source, each tried again for some seconds. Any number
    of threads may read."""

    def __init__(
        self,
        source: Source,
        options: SourceOptions,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._source, self._backoff = source, Backoff(options.backoff_seconds)
        self._patience_seconds = min(PATIENCE_SECONDS, options.stall_seconds)
        self._clock, self._sleep = clock, sleep
        self._bytes_left, self._lock = MOST_BYTES, threading.Lock()
        self._trouble_since: float | None = None

    def __enter__(self) -> "RemoteReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def list_files(self, revision: str | None) -> Listing:
        """As the source's."""
        return self._attempt(lambda: self._source.list_files(revision))

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file; stop is clipped to its end. Corrupt once more was read
        than any model's headers have."""
        span = range(start, min(stop, file.size))
        with self._lock:
            self._bytes_left -= len(span)
        if self._bytes_left < 0:
            raise Corrupt(
                f"a model's headers must have at most {MOST_BYTES:,} bytes together, got more asked"
                f" for by {file.path}; put a whole file in its place"
            )
        return self._attempt(lambda: self._source.read(file, span)) if span else b""

    def _attempt(self, operation: Callable[[], T]) -> T:
        """Run `operation`, again after a TryAgain; then the failure that it names."""
        failures = 0
        while True:
            begin = self._clock()
            try:
                result = operation()
            except TryAgain as error:
                failures += 1
                wait = error.retry_after
                if wait is None:
                    wait = self._backoff.seconds(failures, 0.0)
                if self._is_spent(begin, wait):
                    raise error.failure from None
                self._sleep(wait)
            else:
                self._trouble_since = None
                return result

    def _is_spent(self, begin: float, wait: float) -> bool:
        """Whether trouble would last too long, of which this attempt's begin may be the first."""
        with self._lock:
            since = begin if self._trouble_since is None else self._trouble_since
            self._trouble_since = since
        return self._clock() + wait - since >= self._patience_seconds


def open_reader(uri: ModelUri, options: SourceOptions) -> RemoteReader:
    """A reader of what lies at `uri`. It waits for a byte once, for nearly all of its patience."""
    brief = replace(options, stall_seconds=min(PATIENCE_SECONDS, options.stall_seconds), silences=1)
    return RemoteReader(open_source(uri, brief), brief)
