"""How fast this machine reads memory, to hold a kernel's bytes a second against."""

import time
from collections.abc import Callable

import torch

NUM_BYTES = 256 << 20  # far more than the caches hold
CHUNK_BYTES = 8 << 20  # under a millisecond, so that some run undisturbed on a busy machine too


def read_rate(rounds: int = 5) -> float:
    """Bytes a second of the best chunk of a plain read, on torch's threads.

    Sum and maximum, as neither is the faster one everywhere. All chunks are walked through in turn,
    so that none lies in a cache when it is read again.
    """
    chunks = torch.ones(NUM_BYTES // 4).split(CHUNK_BYTES // 4)
    reads: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (torch.sum, torch.max)
    best = min(_seconds(read, chunk) for _ in range(rounds) for read in reads for chunk in chunks)
    return CHUNK_BYTES / best


def _seconds(read: Callable[[torch.Tensor], torch.Tensor], chunk: torch.Tensor) -> float:
    begin = time.perf_counter()
    read(chunk)
    return time.perf_counter() - begin
