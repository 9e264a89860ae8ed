"""Progress lines: everything that takes long says so before it starts."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(message: str) -> None:
    """Write one progress line to stderr; stdout stays free for what a verb answers."""
    print(f"cluster: {message}", file=sys.stderr, flush=True)


@contextmanager
def timed(message: str) -> Iterator[None]:
    """Announce a step, and say how long it took once it is done."""
    say(f"{message} …")
    start = time.monotonic()
    yield
    say(f"{message}: {time.monotonic() - start:.1f} s")
