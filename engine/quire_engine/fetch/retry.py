"""When to try again. Pure: time and chance come in as arguments."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from quire_engine.errors import FetchFailed
from quire_engine.fetch.errors import Stalled

RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_RETRY_AFTER = 300.0  # above it, failing with the reason in status serves people better


@dataclass(frozen=True)
class Backoff:
    """Exponential waits with jitter, so that parts that failed together do not return together."""

    first_seconds: float
    longest_seconds: float = 30.0

    def seconds(self, failures: int, chance: float) -> float:
        """The wait after `failures` (>= 1) in a row; `chance` in [0, 1) takes up to half away."""
        full = min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1))
        return full * (1 - chance / 2)


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """A Retry-After header (RFC 9110 §10.2.3: seconds or a date) as seconds from `now`; None
    without one or for one that means nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(seconds) else None


class TryAgain(Exception):
    """A failure that may pass. `failure` is what it becomes when it does not."""

    def __init__(
        self, failure: FetchFailed, retry_after: float | None = None, *, silent: bool = False
    ) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.retry_after = retry_after  # seconds, when the source named them
        # Nothing was heard until time was up.
        self.silent = silent or isinstance(failure, Stalled)


@dataclass
class Patience:
    """What in a row is borne: so many failures, and without a byte `stall_seconds`, of which each
    further wait takes up to `silence_seconds`. Times are in seconds, of any clock."""

    max_attempts: int
    stall_seconds: float
    silence_seconds: float
    heard: float  # when the last byte came, or the first was asked for
    failures: int = 0

    def is_spent(self, error: TryAgain, begin: float) -> bool:
        """Counts one more failure; whether another attempt, at `begin`, would be too much."""
        self.failures += 1
        if not error.silent:
            self.heard = begin  # an answer, if none to our liking; the pause may be its own wish
        is_stalled = begin - self.heard + self.silence_seconds > self.stall_seconds
        return self.failures >= self.max_attempts or (error.silent and is_stalled)

    def renew(self) -> None:
        """Enough came for all to be well again."""
        self.failures = 0
