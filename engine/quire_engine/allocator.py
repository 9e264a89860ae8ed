"""How the C library hands out memory in the core process, so that a memory plan holds.

glibc gives blocks above a threshold pages of their own, which go back when they are freed, and cuts
smaller ones from its heap, where freed holes stay. It moves that threshold up to 32 MiB as it goes;
then weights, one matrix at a time beside the temporaries of packing it, leave holes between them:
40 MB of SmolLM2's 270. Here the threshold stands still: low while weights and KV cache are
allocated, high for the steps, which ask for the same few sizes over and over and would fault
hundreds of megabytes of fresh pages in each. (mallopt(3); elsewhere than glibc nothing happens.)
"""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LOW_BYTES = 128 * 1024  # glibc's first
_HIGH_BYTES = 32 * 1024 * 1024  # its highest
_KEPT_BYTES = 256 * 1024 * 1024  # of freed heap, for the next step


@contextlib.contextmanager
def exact_allocations() -> Iterator[None]:
    """Within, what is freed goes back to the system; from then on the steps' memory is kept."""
    _set(_MMAP_THRESHOLD, _LOW_BYTES)
    _set(_TRIM_THRESHOLD, _LOW_BYTES)
    try:
        yield
    finally:
        _set(_MMAP_THRESHOLD, _HIGH_BYTES)
        _set(_TRIM_THRESHOLD, _KEPT_BYTES)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
