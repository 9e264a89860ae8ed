"""What the kernels' tests share: each backend that runs here, and paged batches to run them on.

Triton's interpreter is chosen when a kernel's module is imported, for the whole process. Tests with
the marker `interpreter` therefore run only where TRITON_INTERPRET=1 is set, and they alone run
there: test_interpreter.py starts that process.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quire_kernels.backends import Backend, cpp_backend, torch_backend, triton_backend
from quire_kernels.library import available_isas

torch.set_num_threads(1)  # as in a serving process; tests of several threads say how many

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = [
        item
        for item in items
        if Path(__file__).parent in item.path.parents
        and (item.get_closest_marker("interpreter") is not None) != INTERPRETED
    ]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]
    for item in items:
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def get_backend(name: str) -> Backend:
    if name == "torch":
        return torch_backend()
    return triton_backend() if name.startswith("triton") else cpp_backend(name)


CPU_BACKENDS = ("torch", *available_isas())


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> Backend:
    """The torch reference and every compiled variant that this machine runs."""
    return get_backend(request.param)


@pytest.fixture(params=available_isas())
def compiled(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every compiled variant that this machine runs."""
    backend = get_backend(request.param)
    yield backend
    backend.set_num_threads(torch.get_num_threads())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@dataclasses.dataclass(frozen=True)
class PagedBatch:
    """Sequences with their keys and values in a paged cache, and the queries to ask them."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    scale: float

    def run(self, backend: Backend) -> torch.Tensor:
        return backend.paged_attention(*(getattr(self, f.name) for f in dataclasses.fields(self)))

    def to(self, device: str) -> "PagedBatch":
        tensors = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if f.name != "scale"
        }
        return dataclasses.replace(self, **tensors)


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def make_batch():  # type: ignore[no-untyped-def]
    """Builds a PagedBatch of random values: blocks in random order, unused slots full of NaN."""

    def make(
        lengths: list[int],
        num_queries: list[int],
        *,
        heads: tuple[int, int] = (9, 3),
        dim: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> PagedBatch:
        num_heads, num_kv_heads = heads
        counts = [-(-length // block_size) for length in lengths]
        num_blocks = sum(counts) + 2
        caches = torch.full((2, num_blocks, block_size, num_kv_heads, dim), float("nan"))
        order = torch.randperm(num_blocks).tolist()
        tables = torch.zeros(len(lengths), max(counts) + 1, dtype=torch.int32)
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            blocks = [order.pop() for _ in range(count)]
            tables[row, :count] = int32(blocks)
            for position in range(length):
                place = blocks[position // block_size], position % block_size
                caches[:, place[0], place[1]] = torch.randn(2, num_kv_heads, dim)
        # as the engine has it: a view into a fused buffer
        fused = torch.randn(sum(num_queries), num_heads + 2, dim)
        return PagedBatch(
            query=fused[:, :num_heads].to(dtype),
            key_cache=caches[0].to(dtype),
            value_cache=caches[1].to(dtype),
            query_start_loc=int32([sum(num_queries[:i]) for i in range(len(num_queries) + 1)]),
            seq_lens=int32(lengths),
            block_tables=tables,
            scale=dim**-0.5,
        )

    return make
