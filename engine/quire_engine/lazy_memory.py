"""Memory of a CPU that becomes real where it is used, and for the KV cache a little sooner.

The first write to a page waits for the system to find and clear it, several times longer in a
virtual machine that has not used the page before. A token of SmolLM2 writes to 11 new pages, so
that a step of prompts waits for thousands. Huge pages are cleared at a fraction of the cost (where
the system has none, small ones do), and a thread goes ahead of the steps.
"""

import contextlib
import ctypes
import math
import mmap
import os
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

AHEAD_BYTES = 256 << 20  # that are real beyond the blocks in use; 32 sequences of 192 of SmolLM2
_POPULATE_WRITE = 23  # madvise(2), since Linux 5.14; elsewhere it says no, and pages come when used
_LEAST_PRIORITY = 19


def lazy_zeros(shape: tuple[int, ...]) -> Tensor:
    """float32 zeros on the CPU that take memory where they are written, and no sooner.

    torch's own are written: 5 s for 4 GiB, and all of it resident.
    """
    memory = mmap.mmap(-1, math.prod(shape) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


def in_background(task: Callable[[], None]) -> None:
    """`task` in a thread that comes after all others, and that no exit waits for."""

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
        task()

    threading.Thread(target=run, name="make-real", daemon=True).start()


class PagesAhead:
    """Makes the memory of blocks real before they are used.

    The block manager gives out each block once before it gives one out again, in rising order, so
    what comes next lies behind the highest one so far.
    """

    def __init__(
        self,
        caches: Sequence[Tensor],
        ahead_bytes: int = AHEAD_BYTES,
        start: Callable[[Callable[[], None]], None] = in_background,
    ) -> None:
        """`caches` of lazy_zeros, a block each row. `start` runs what it is given."""
        self._caches = caches  # alive for as long as a thread may want them
        self._num_blocks = len(caches[0])
        block_bytes = sum(cache.nbytes for cache in caches) // self._num_blocks
        self._ahead = max(1, ahead_bytes // block_bytes)
        self._end = 0  # blocks before it are real, or will be soon
        self._start = start

    def used(self, block_id: int) -> None:
        """`block_id` is about to be used."""
        begin, end = self._end, min(block_id + 1 + self._ahead, self._num_blocks)
        if begin < end and block_id + 1 + self._ahead // 2 > begin:
            self._end = end
            self._start(lambda: self._make_real(begin, end))

    def _make_real(self, begin: int, end: int) -> None:
        for cache in self._caches:
            block_bytes = cache.nbytes // self._num_blocks
            first = cache.data_ptr() + begin * block_bytes
            in_page = first % mmap.PAGESIZE
            # it changes nothing that is there already
            num_bytes = in_page + (end - begin) * block_bytes
            _madvise(ctypes.c_void_p(first - in_page), ctypes.c_size_t(num_bytes), _POPULATE_WRITE)


_madvise = ctypes.CDLL(None).madvise
