"""What is real, by the system's own word: mincore(2)."""

import ctypes
import mmap
import os
import threading

import pytest
import torch

from quire_engine.lazy_memory import PagesAhead, in_background, lazy_zeros

MIB = 1 << 20
# as large as a huge page, so that none belongs to two blocks
BLOCK_BYTES = 2 * MIB
NUM_BLOCKS = 8


def is_real(values: torch.Tensor) -> bool:
    """Whether all, or none, of the whole pages of `values` are in memory: True, or False."""
    begin = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    num_pages = (values.data_ptr() + values.nbytes - begin) // mmap.PAGESIZE
    pages = (ctypes.c_ubyte * num_pages)()
    arguments = ctypes.c_void_p(begin), ctypes.c_size_t(num_pages * mmap.PAGESIZE), pages
    assert ctypes.CDLL(None).mincore(*arguments) == 0
    found = {page & 1 for page in pages}
    assert len(found) == 1, "some pages are and some are not"
    return found == {1}


def aligned_caches(count: int) -> list[torch.Tensor]:
    """[NUM_BLOCKS, values] each; a block begins where a huge page does."""
    memory = lazy_zeros((count * NUM_BLOCKS + 1, BLOCK_BYTES // 4)).flatten()
    skipped = -memory.data_ptr() % BLOCK_BYTES // 4
    blocks = memory[skipped:][: count * NUM_BLOCKS * BLOCK_BYTES // 4]
    return list(blocks.view(count, NUM_BLOCKS, BLOCK_BYTES // 4))


def real_blocks(cache: torch.Tensor) -> int:
    """How many blocks are real; they are the first ones."""
    real = [is_real(block) for block in cache]
    assert real == sorted(real, reverse=True)
    return sum(real)


def run_now(task):
    task()


def test_zeros_take_no_memory_until_they_are_written():
    zeros = lazy_zeros((3, BLOCK_BYTES // 4))
    assert not is_real(zeros)
    assert zeros.dtype == torch.float32
    assert not zeros.any()
    zeros[1] = 1.0
    assert is_real(zeros[1])


def test_a_system_without_huge_pages_serves_small_ones(monkeypatch):
    class Mapping(mmap.mmap):
        def madvise(self, option):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Mapping)
    zeros = lazy_zeros((2, 3))
    zeros[1, 2] = 5.0
    assert zeros.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]


def test_blocks_are_real_before_they_are_used():
    caches = aligned_caches(2)
    ahead = PagesAhead(caches, ahead_bytes=2 * 2 * BLOCK_BYTES, start=run_now)
    assert [real_blocks(cache) for cache in caches] == [0, 0]
    ahead.used(0)
    assert [real_blocks(cache) for cache in caches] == [3, 3]
    ahead.used(2)
    assert [real_blocks(cache) for cache in caches] == [5, 5]
    ahead.used(NUM_BLOCKS - 1)
    assert [real_blocks(cache) for cache in caches] == [NUM_BLOCKS, NUM_BLOCKS]


def test_it_starts_anew_when_half_of_what_was_ahead_is_used():
    started = []
    ahead = PagesAhead(aligned_caches(1), ahead_bytes=4 * BLOCK_BYTES, start=started.append)
    counts = []
    for block_id in (0, 1, 2, 3, 0, 7, 5):
        ahead.used(block_id)
        counts.append(len(started))
    assert counts == [1, 1, 1, 2, 2, 2, 2]


def test_what_is_written_meanwhile_stays():
    [cache] = aligned_caches(1)
    tasks = []
    PagesAhead([cache], ahead_bytes=BLOCK_BYTES, start=tasks.append).used(0)
    cache[0, ::100] = 7.0
    tasks[0]()
    assert is_real(cache[1])
    assert cache[0, ::100].eq(7.0).all()
    assert cache.sum() == 7.0 * len(cache[0, ::100])


@pytest.mark.parametrize("block_values", [1, 1000, 1025])
def test_blocks_need_not_end_with_a_page(block_values):
    caches = list(lazy_zeros((3, 5, block_values)))
    ahead = PagesAhead(caches, ahead_bytes=1, start=run_now)
    for block_id in range(5):
        ahead.used(block_id)
    assert all(is_real(cache) for cache in caches if cache.nbytes > 3 * mmap.PAGESIZE)


def test_the_thread_comes_after_all_others():
    found, done = [], threading.Event()

    def task():
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        found.append(threading.current_thread().daemon)
        done.set()

    in_background(task)
    assert done.wait(10)
    assert found == [19, True]
