"""Reading pieces of remote files: for headers, not for downloads."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx2

from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import Backoff, TryAgain
from quire_engine.fetch.transfer import check_response

T = TypeVar("T")
ATTEMPTS = 3
READ_SECONDS = 10.0


class RemoteReader:
    """A few range reads over one connection pool, each tried three times."""

    def __init__(self, options: SourceOptions) -> None:
        self._backoff = Backoff(options.backoff_seconds)
        token = {"Authorization": f"Bearer {options.token}"} if options.token else {}
        self._client = httpx2.Client(
            headers={**token, "Accept-Encoding": "identity"},
            timeout=READ_SECONDS,
            follow_redirects=True,
        )

    def __enter__(self) -> "RemoteReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def attempt(self, operation: Callable[[], T]) -> T:
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

    def read(self, url: str, name: str, size: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file `name` of `size` bytes; stop is clipped to its end."""
        span = range(start, min(stop, size))
        return self.attempt(lambda: self._read(url, name, size, span)) if span else b""

    def _read(self, url: str, name: str, size: int, span: range) -> bytes:
        try:
            headers = {"Range": f"bytes={span.start}-{span.stop - 1}"}
            response = self._client.get(url, headers=headers)
        except httpx2.HTTPError as error:
            failure = SourceUnreachable(f"{name} must be readable, got {type(error).__name__}")
            raise TryAgain(failure) from None
        check_response(response, name, span, size)
        return response.content
