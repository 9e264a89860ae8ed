"""Weights of small integers: int8, int4 and GGUF's blocks, each against double precision over what
it stands for, and every variant against every other, bit for bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_kernels import GgufRows, GgufType, KernelInputError, PackedLinear
from quire_kernels.backends import Backend, cpp_backend
from quire_kernels.library import available_isas
from quire_kernels.ops.linear.gguf import BLOCKS, dequantize
from quire_kernels.ops.linear.groups import round_rows
from quire_kernels.ops.linear.int4 import dequantize_int4, quantize_int4
from quire_kernels.ops.linear.int8 import dequantize_int8, quantize_int8
from quire_kernels.ops.linear.packed import Quantization

GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)


@dataclass(frozen=True)
class Case:
    """A format, depths that it takes, how x is rounded (`round_rows`), and bits of a stored weight
    in panels without padding."""

    name: str
    pack: Callable[[Backend, torch.Tensor], PackedLinear]
    meaning: Callable[[torch.Tensor], torch.Tensor]  # the weight that [N, K] becomes, float32
    unit: int  # K is a multiple of it
    rounding: tuple[int, int]
    bits: float

    def __str__(self) -> str:
        return self.name


def gguf_blocks(weight: torch.Tensor, gguf_type: GgufType) -> torch.Tensor:
    """`weight` in GGUF's blocks, by the format's own package; the K formats, which it only reads,
    hold what the weight's bytes happen to be, with factors that are numbers."""
    their_type = gguf.GGMLQuantizationType[gguf_type]
    if gguf_type in ("Q4_0", "Q4_1", "Q8_0"):
        return torch.from_numpy(gguf.quantize(weight.float().numpy(), their_type))
    stored = BLOCKS[gguf_type]
    num_blocks = weight.numel() // stored.num_values
    generator = np.random.default_rng(int(weight.abs().sum() * 1000))
    blocks = generator.integers(0, 256, (num_blocks, stored.num_bytes), dtype=np.uint8)
    factors = generator.normal(0, 0.02, (num_blocks, 2)).astype(np.float16).view(np.uint8)
    if gguf_type == "Q4_K":
        blocks[:, :4] = factors
    else:
        blocks[:, 208:210] = factors[:, :2]
    return torch.from_numpy(blocks.reshape(weight.shape[0], -1))


def gguf_rows(weight: torch.Tensor, gguf_type: GgufType) -> GgufRows:
    num_rows, depth = weight.shape
    blocks = gguf_blocks(weight, gguf_type)
    return GgufRows((num_rows, depth), gguf_type, lambda begin, end: blocks[begin:end])


def gguf_case(gguf_type: GgufType, bits: float) -> Case:
    their_type, stored = gguf.GGMLQuantizationType[gguf_type], BLOCKS[gguf_type]

    def pack(backend: Backend, weight: torch.Tensor) -> PackedLinear:
        return backend.pack_gguf(gguf_rows(weight, gguf_type))

    def meaning(weight: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(gguf.dequantize(gguf_blocks(weight, gguf_type).numpy(), their_type))

    rounding = (stored.group_size, stored.x_bits)
    return Case(gguf_type, pack, meaning, stored.num_values, rounding, bits)


CASES = [
    Case(
        "int8",
        lambda backend, weight: backend.pack_linear(weight, "int8"),
        lambda weight: dequantize_int8(*quantize_int8(weight)),
        1,
        (64, 16),
        8.25,
    ),
    Case(
        "int4",
        lambda backend, weight: backend.pack_linear(weight, "int4"),
        lambda weight: dequantize_int4(*quantize_int4(weight)),
        1,
        (32, 8),
        5,
    ),
    gguf_case("Q4_0", 5),
    gguf_case("Q4_1", 5),
    gguf_case("Q8_0", 8.5),
    gguf_case("Q4_K", 4.625),
    gguf_case("Q6_K", 8.5625),
]
# rows, columns, and depth in units of the format (or of 32, to be long enough)
SHAPES = [(1, 1, 1), (1, 60, 18), (2, 33, 2), (5, 16, 3), (6, 15, 4), (7, 17, 5), (70, 40, 33)]


def depth_of(case: Case, units: int) -> int:
    return units * 100 - 99 if case.unit == 1 else min(units, 1280 // case.unit) * case.unit


pytestmark = pytest.mark.filterwarnings("ignore:overflow")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "units"), SHAPES)
def test_equals_double_precision_over_what_is_stored(
    cpu_backend: Backend, case: Case, rows: int, columns: int, units: int
) -> None:
    depth = depth_of(case, units)
    x, bias, weight = torch.randn(rows, depth), torch.randn(columns), torch.randn(columns, depth)
    meaning = case.meaning(weight).double()
    result = cpu_backend.linear(x, case.pack(cpu_backend, weight), bias)
    expected = round_rows(x, *case.rounding).double() @ meaning.T + bias
    size = meaning.abs().amax().item() + 1
    torch.testing.assert_close(
        result.double(), expected, atol=size * (3e-6 * depth**0.5 + 1e-6), rtol=1e-5
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("columns", "units"), [(1, 1), (16, 2), (33, 3), (40, 13)])
def test_every_variant_stores_exactly_what_the_format_means(
    cpu_backend: Backend, case: Case, columns: int, units: int
) -> None:
    weight = torch.randn(columns, depth_of(case, units))
    packed = case.pack(cpu_backend, weight)
    assert torch.equal(cpu_backend.embedding(torch.arange(columns), packed), case.meaning(weight))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_the_same_at_any_number_of_rows_and_threads(compiled: Backend, case: Case) -> None:
    depth = 1280 if case.unit > 1 else 1100
    x = torch.randn(140, depth)
    packed = case.pack(compiled, torch.randn(83, depth).bfloat16())
    compiled.set_num_threads(1)
    alone = torch.cat([compiled.linear(row, packed) for row in x.split(1)])
    for num_threads in (1, 3):
        compiled.set_num_threads(num_threads)
        for rows in (1, 2, 3, 4, 5, 6, 7, 12, 23, 24, 25, 37, 48, 140):
            assert torch.equal(compiled.linear(x[:rows], packed), alone[:rows]), rows


@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from(CASES),
    rows=st.integers(1, 60),
    columns=st.integers(1, 90),
    units=st.integers(1, 5),
    data=st.data(),
)
def test_a_row_does_not_depend_on_its_neighbours(
    case: Case, rows: int, columns: int, units: int, data: st.DataObject
) -> None:
    backend = cpp_backend(available_isas()[0])
    depth = depth_of(case, units)
    packed = case.pack(backend, torch.randn(columns, depth))
    x = torch.randn(rows, depth)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    assert torch.equal(backend.linear(x[begin:end], packed), backend.linear(x, packed)[begin:end])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_instruction_sets_give_the_same_bits(case: Case) -> None:
    depth = 512 if case.unit > 1 else 170
    x, weight = torch.randn(29, depth), torch.randn(50, depth)
    results = []
    for isa in available_isas():
        backend = cpp_backend(isa)
        results.append(backend.linear(x, case.pack(backend, weight)))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [1e-33, 1e-20, 1.0, 1e30])
def test_rows_are_rounded_to_half_a_step_of_their_groups_largest(size: float, bits: int) -> None:
    x = torch.randn(9, 200) * size
    rounded = round_rows(x, 64, bits)
    for begin in range(0, 200, 64):
        group = slice(begin, begin + 64)
        most = x[:, group].abs().amax(dim=1, keepdim=True)
        if size < 1e-30:
            assert not rounded[:, group].any()
        else:
            assert ((x - rounded)[:, group].abs() <= most / (2 ** (bits - 1) - 1) * 0.51).all()
            at_most = x[:, group].abs() == most
            torch.testing.assert_close(rounded[:, group][at_most], x[:, group][at_most])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_in_a_row_shows_in_its_results_and_in_no_others(
    cpu_backend: Backend, case: Case, bad: float
) -> None:
    depth = max(256, case.unit)
    x = torch.randn(7, depth)
    packed = case.pack(cpu_backend, torch.randn(20, depth))
    others = torch.arange(7) != 4
    expected = cpu_backend.linear(x, packed)[others]
    x[4, 37] = bad
    result = cpu_backend.linear(x, packed)
    assert not torch.isfinite(result[4]).any()
    assert torch.equal(result[others], expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-35, 1e-20, 1e20])
def test_rows_of_every_size(cpu_backend: Backend, case: Case, size: float) -> None:
    depth = max(256, case.unit)
    x, weight = torch.randn(3, depth) * size, torch.randn(20, depth)
    expected = round_rows(x, *case.rounding).double() @ case.meaning(weight).double().T
    result = cpu_backend.linear(x, case.pack(cpu_backend, weight))
    torch.testing.assert_close(result.double(), expected, atol=1e-4 * size, rtol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_rows_and_no_depth(cpu_backend: Backend, case: Case) -> None:
    depth = 256
    packed = case.pack(cpu_backend, torch.randn(20, depth))
    assert cpu_backend.linear(torch.empty(0, depth), packed).shape == (0, 20)
    if case.unit == 1:
        empty = case.pack(cpu_backend, torch.empty(20, 0))
        assert not cpu_backend.linear(torch.empty(3, 0), empty).any()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("columns", [1, 16, 33])
def test_bytes_are_those_of_whole_panels(compiled: Backend, case: Case, columns: int) -> None:
    depth, padded = 768, math.ceil(columns / 16) * 16
    packed = case.pack(compiled, torch.randn(columns, depth).bfloat16())
    assert packed.nbytes == padded * depth * case.bits / 8


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("bad", [-1, 37])
def test_embedding_refuses_ids_outside(compiled: Backend, case: Case, bad: int) -> None:
    packed = case.pack(compiled, torch.randn(37, 256))
    with pytest.raises(KernelInputError, match=rf"\[0, 37\), got {bad} at index 1"):
        compiled.embedding(torch.tensor([3, bad]), packed)


@pytest.mark.parametrize("gguf_type", GGUF_TYPES)
def test_the_reference_reads_blocks_as_ggufs_own_package(gguf_type: GgufType) -> None:
    blocks = gguf_blocks(torch.randn(9, 512), gguf_type)
    theirs = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[gguf_type])
    assert torch.equal(dequantize(blocks, gguf_type, 512), torch.from_numpy(theirs))


def test_blocks_of_another_shape_are_refused(cpu_backend: Backend) -> None:
    blocks = gguf_blocks(torch.randn(4, 64), "Q4_1")

    def pack(depth: int, read: torch.Tensor) -> None:
        cpu_backend.pack_gguf(GgufRows((4, depth), "Q4_1", lambda begin, end: read[begin:end]))

    with pytest.raises(KernelInputError, match=r"blocks must be uint8 \[rows, 60\]"):
        pack(96, blocks)
    with pytest.raises(KernelInputError, match="a multiple of 32 values, got 65"):
        pack(65, blocks)
    with pytest.raises(KernelInputError, match="blocks must be uint8"):
        pack(64, blocks.float())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_large_weights_are_packed_in_pieces_and_are_the_same(
    cpu_backend: Backend, case: Case
) -> None:
    """More values than are taken at once: 2^18."""
    weight = torch.randn(600, 1024)
    packed = case.pack(cpu_backend, weight)
    assert torch.equal(cpu_backend.embedding(torch.arange(600), packed), case.meaning(weight))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_refused(
    cpu_backend: Backend, dtype: torch.dtype, bad: float, quantization: Quantization
) -> None:
    weight = torch.randn(40, 70).to(dtype)
    weight[31, 69] = weight[33, 0] = bad
    with pytest.raises(KernelInputError, match="must be finite, got an infinity or NaN in row 31"):
        cpu_backend.pack_linear(weight, quantization)
