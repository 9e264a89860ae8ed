"""Reading pieces of remote files: for headers, not for downloads."""

import time
from collections.abc import Callable
from typing import TypeVar

from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import Backoff, TryAgain
from quire_engine.fetch.source import Listing, RemoteFile
from quire_engine.fetch.sources import Source

T = TypeVar("T")
ATTEMPTS = 3


class RemoteReader:
    """A listing and a few range reads of one source, each tried three times."""

    def __init__(self, source: Source, options: SourceOptions) -> None:
        self._source, self._backoff = source, Backoff(options.backoff_seconds)

    def __enter__(self) -> "RemoteReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def list_files(self, revision: str | None) -> Listing:
        """As the source's."""
        return self._attempt(lambda: self._source.list_files(revision))

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file; stop is clipped to its end."""
        span = range(start, min(stop, file.size))
        return self._attempt(lambda: self._source.read(file, span)) if span else b""

    def _attempt(self, operation: Callable[[], T]) -> T:
        """Run `operation`, again after a TryAgain; then the failure that it names."""
        for failures in range(1, ATTEMPTS + 1):
            try:
                return operation()
            except TryAgain as error:
                if failures == ATTEMPTS:
                    raise error.failure from None
                wait = error.retry_after
                time.sleep(self._backoff.seconds(failures, 0.0) if wait is None else wait)
        raise AssertionError("unreachable")
