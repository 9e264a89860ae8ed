import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend, cpp_backend, torch_backend
from quire_kernels.library import available_isas


@pytest.mark.parametrize("width", [1, 15, 16, 17, 49152])
def test_finds_the_largest(cpu_backend: Backend, width: int) -> None:
    x = torch.randn(5, width)
    assert cpu_backend.argmax(x).tolist() == [row.tolist().index(max(row.tolist())) for row in x]


def test_lowest_index_wins_a_tie(cpu_backend: Backend) -> None:
    x = torch.zeros(3, 40)
    x[1, [7, 8, 30]] = 1.0
    x[2, :39] = float("-inf")
    assert cpu_backend.argmax(x).tolist() == [0, 7, 39]


@pytest.mark.parametrize("place", [0, 2, 33, 39])
def test_a_row_without_a_finite_maximum_has_none(cpu_backend: Backend, place: int) -> None:
    x = torch.ones(6, 40)
    x[0, place] = x[1, :] = float("nan")
    x[2, place] = float("inf")
    x[3] = float("-inf")
    x[4, place] = float("nan")
    x[4, 5] = float("-inf")
    x[5] = float("-inf")
    x[5, place] = -3.0
    assert cpu_backend.argmax(x).tolist() == [-1, -1, -1, -1, -1, place]


def test_the_largest_floats_are_numbers(cpu_backend: Backend) -> None:
    x = torch.full((2, 49152), torch.finfo(torch.float32).max)
    x[1] = -x[1]
    x[1, 7:9] = 0.0
    assert cpu_backend.argmax(x).tolist() == [0, 7]


@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=70))
def test_compiled_equals_the_reference(values: list[int]) -> None:
    x = torch.tensor([values], dtype=torch.float32)
    result = cpp_backend(available_isas()[0]).argmax(x)
    assert result.tolist() == torch_backend().argmax(x).tolist() == [values.index(max(values))]


def test_rows_may_be_far_apart(compiled: Backend) -> None:
    x = torch.randn(4, 100)
    assert torch.equal(compiled.argmax(x[:, 3:50]), compiled.argmax(x[:, 3:50].clone()))


def test_bad_input_is_named(compiled: Backend) -> None:
    with pytest.raises(KernelInputError, match="x must be"):
        compiled.argmax(torch.zeros(4, 0))
