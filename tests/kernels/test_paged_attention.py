import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend, cpp_backend, torch_backend, triton_backend
from quire_kernels.library import available_isas

from .conftest import PagedBatch, int32

MakeBatch: TypeAlias = Callable[..., PagedBatch]

# heads, head features, block size
LAYOUTS = [((9, 3), 64, 16), ((4, 4), 40, 8), ((8, 1), 128, 16), ((6, 2), 5, 3), ((50, 1), 16, 1)]


def expected(batch: PagedBatch) -> torch.Tensor:
    """Each query by torch's own attention in double precision."""
    rows = []
    for seq in range(len(batch.seq_lens)):
        begin, end = batch.query_start_loc[seq : seq + 2].tolist()
        length = int(batch.seq_lens[seq])
        slots = [
            (
                int(batch.block_tables[seq, p // batch.key_cache.shape[1]]),
                p % batch.key_cache.shape[1],
            )
            for p in range(length)
        ]
        keys = torch.stack([batch.key_cache[s] for s in slots]).double()
        values = torch.stack([batch.value_cache[s] for s in slots]).double()
        for index, row in enumerate(batch.query[begin:end].double()):
            visible = length - (end - begin) + index + 1
            rows.append(
                torch.nn.functional.scaled_dot_product_attention(
                    row.unsqueeze(1),
                    keys[:visible].transpose(0, 1),
                    values[:visible].transpose(0, 1),
                    scale=batch.scale,
                    enable_gqa=True,
                ).squeeze(1)
            )
    return torch.stack(rows)


@pytest.mark.parametrize(("heads", "dim", "block_size"), LAYOUTS)
def test_equals_double_precision(
    cpu_backend: Backend,
    make_batch: MakeBatch,
    heads: tuple[int, int],
    dim: int,
    block_size: int,
) -> None:
    batch = make_batch(
        [1, 17, 64, 65, 130], [1, 5, 64, 1, 3], heads=heads, dim=dim, block_size=block_size
    )
    torch.testing.assert_close(
        batch.run(cpu_backend).double(), expected(batch), atol=3e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("heads", "dim", "block_size"), LAYOUTS)
def test_bitwise_the_same_alone_in_any_chunk_and_batch(
    compiled: Backend,
    make_batch: MakeBatch,
    heads: tuple[int, int],
    dim: int,
    block_size: int,
) -> None:
    batch = make_batch([129, 70], [129, 70], heads=heads, dim=dim, block_size=block_size)
    together = batch.run(compiled)
    for chunk in (1, 7, 64, 100):
        for num_threads in (1, 3):
            compiled.set_num_threads(num_threads)
            assert torch.equal(in_chunks(batch, compiled, chunk), together), (chunk, num_threads)


def in_chunks(batch: PagedBatch, backend: Backend, chunk: int) -> torch.Tensor:
    """Every sequence by itself, `chunk` queries at a time."""
    parts = []
    for seq in range(len(batch.seq_lens)):
        begin, end = batch.query_start_loc[seq : seq + 2].tolist()
        before = int(batch.seq_lens[seq]) - (end - begin)
        for first in range(begin, end, chunk):
            last = min(first + chunk, end)
            part = dataclasses.replace(
                batch,
                query=batch.query[first:last],
                query_start_loc=int32([0, last - first]),
                seq_lens=int32([before + last - begin]),
                block_tables=batch.block_tables[seq : seq + 1],
            )
            parts.append(part.run(backend))
    return torch.cat(parts)


def test_bitwise_the_same_in_any_block_size(compiled: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([150], [150], block_size=150)
    for block_size in (1, 10, 25):
        again = dataclasses.replace(
            batch,
            key_cache=batch.key_cache.view(-1, block_size, 3, 64),
            value_cache=batch.value_cache.view(-1, block_size, 3, 64),
            block_tables=(
                batch.block_tables[:, :1] * (150 // block_size)
                + torch.arange(150 // block_size, dtype=torch.int32)
            ).to(torch.int32),
        )
        assert torch.equal(again.run(compiled), batch.run(compiled)), block_size


@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 140), min_size=1, max_size=4), data=st.data())
def test_a_sequence_does_not_depend_on_its_batch(lengths: list[int], data: st.DataObject) -> None:
    num_queries = [data.draw(st.integers(1, length)) for length in lengths]
    max_blocks = max(-(-length // 16) for length in lengths)
    num_blocks = max_blocks * len(lengths)
    starts = int32([sum(num_queries[:i]) for i in range(len(lengths) + 1)])
    batch = PagedBatch(
        query=torch.randn(sum(num_queries), 6, 32),
        key_cache=torch.randn(num_blocks, 16, 2, 32),
        value_cache=torch.randn(num_blocks, 16, 2, 32),
        query_start_loc=starts,
        seq_lens=int32(lengths),
        block_tables=torch.randperm(num_blocks).to(torch.int32).view(len(lengths), max_blocks),
        scale=0.2,
    )
    backend = cpp_backend(available_isas()[0])
    chunk = data.draw(st.integers(1, 140))
    assert torch.equal(in_chunks(batch, backend, chunk), batch.run(backend))


def test_a_later_token_cannot_reach_an_earlier_one(
    compiled: Backend, make_batch: MakeBatch
) -> None:
    batch = make_batch([20], [20])
    before = batch.run(compiled)
    block, offset = int(batch.block_tables[0, 0]), 9
    batch.value_cache[block, offset] = float("nan")
    after = batch.run(compiled)
    assert torch.equal(after[:9], before[:9])
    assert after[9:].isnan().all()


def test_large_scores_do_not_overflow(cpu_backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([100], [3])
    batch = dataclasses.replace(batch, query=batch.query * 1000)
    torch.testing.assert_close(
        batch.run(cpu_backend).double(), expected(batch), atol=1e-3, rtol=1e-3
    )


def test_sequences_without_queries_are_passed_over(
    cpu_backend: Backend, make_batch: MakeBatch
) -> None:
    batch = make_batch([30, 5, 8], [2, 0, 8])
    torch.testing.assert_close(
        batch.run(cpu_backend).double(), expected(batch), atol=3e-6, rtol=1e-5
    )


def test_writes_into_out(cpu_backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([30], [2])
    out = torch.empty(2, 9, 64)
    arguments = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    assert cpu_backend.paged_attention(*arguments, out) is out
    assert torch.equal(out, batch.run(cpu_backend))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"query_start_loc": int32([0, 3])}, r"query_start_loc must rise.*sequence 0"),
        ({"query_start_loc": int32([1, 0])}, "query_start_loc must rise"),
        ({"seq_lens": int32([1])}, "seq_lens must count"),
        ({"seq_lens": int32([100])}, "seq_lens must count"),
        ({"block_tables": int32([[0, 99]])}, "block_tables must name blocks"),
        ({"block_tables": int32([[-1, 0]])}, "block_tables must name blocks"),
        ({"seq_lens": torch.tensor([30])}, "must be int32"),
        ({"query": torch.zeros(2, 8, 64)}, "Hq a multiple of Hkv = 3"),
        ({"query": torch.zeros(2, 9, 60)}, "caches must be"),
    ],
)
def test_bad_input_is_named(
    compiled: Backend, make_batch: MakeBatch, change: dict[str, torch.Tensor], rule: str
) -> None:
    batch = dataclasses.replace(make_batch([30], [2]), **change)
    with pytest.raises(KernelInputError, match=rule):
        batch.run(compiled)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("heads", "dim", "block_size", "lengths", "num_queries", "dtype"),
    [
        ((9, 3), 64, 16, [1, 40, 17], [1, 1, 1], torch.float32),
        ((9, 3), 64, 16, [18], [3], torch.float16),
        ((2, 2), 40, 8, [21, 1, 30], [21, 1, 4], torch.float32),
        ((6, 1), 16, 4, [33, 5], [1, 5], torch.float16),
        ((20, 1), 8, 3, [20], [3], torch.float32),
    ],
)
def test_triton_equals_the_reference(
    make_batch: MakeBatch,
    heads: tuple[int, int],
    dim: int,
    block_size: int,
    lengths: list[int],
    num_queries: list[int],
    dtype: torch.dtype,
) -> None:
    batch = make_batch(
        lengths, num_queries, heads=heads, dim=dim, block_size=block_size, dtype=dtype
    )
    check_triton(batch, 2e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.interpreter
@pytest.mark.parametrize("num_splits", [2, 3])
def test_triton_joins_split_keys(make_batch: MakeBatch, num_splits: int) -> None:
    from quire_kernels.ops.paged_attention import triton

    batch = make_batch([1, 70], [1, 2])
    arguments = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    result = triton.paged_attention(*arguments, num_splits=num_splits)
    torch.testing.assert_close(result, batch.run(torch_backend()), atol=2e-6, rtol=1e-5)


def check_triton(batch: PagedBatch, tolerance: float) -> None:
    result = batch.run(triton_backend())
    assert result.dtype == batch.query.dtype
    torch.testing.assert_close(
        result, batch.run(torch_backend()), atol=tolerance, rtol=10 * tolerance
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "dim", "block_size"), LAYOUTS[:3])
def test_triton_on_a_gpu(
    make_batch: MakeBatch,
    heads: tuple[int, int],
    dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    options = {"heads": heads, "dim": dim, "block_size": block_size, "dtype": dtype}
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for lengths, queries in [([1, 17, 700], [1, 5, 300]), ([2000, 3, 900], [1, 1, 1])]:
        check_triton(make_batch(lengths, queries, **options).to("cuda"), tolerance)


@pytest.mark.parametrize(
    ("num_tiles", "multiprocessors", "max_len", "splits"),
    [
        (8, 132, 8192, 32),  # one sequence, 8 kv heads: all of an H100's multiprocessors
        (8, 132, 300, 1),  # too short to split
        (8, 132, 1024, 4),
        (512, 132, 8192, 1),  # enough tiles as it is
        (1, 132, 1 << 20, 64),
        (3, 1, 8192, 1),
    ],
)
def test_splits_follow_multiprocessors_length_and_heads(
    num_tiles: int, multiprocessors: int, max_len: int, splits: int
) -> None:
    from quire_kernels.ops.paged_attention.triton import choose_num_splits

    assert choose_num_splits(num_tiles, multiprocessors, max_len, 64) == splits
