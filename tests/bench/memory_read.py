"""How fast this machine reads memory, to hold a kernel's bytes a second against."""

import time
from collections.abc import Callable

import torch

NUM_BYTES = 256 << 20  # far more than the caches hold


def read_rate(rounds: int = 5) -> float:
    """Bytes a second of the fastest of some plain reads, on torch's threads.

    Two sums, as neither is the fastest everywhere; memory that lies in no cache is read once a
    round.
    """
    floats = torch.ones(NUM_BYTES // 4)
    calls = (lambda: floats.sum(), lambda: floats.max())
    return NUM_BYTES / min(_seconds(call) for _ in range(rounds) for call in calls)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
