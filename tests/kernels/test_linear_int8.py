"""Int8 weights: the quantizer against the rounding error that arithmetic promises, the kernels
against double precision over the dequantized weight. What holds of every format of weights, these
too, is in test_linear.py.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend, cpp_backend
from quire_kernels.library import available_isas
from quire_kernels.ops.linear.groups import groups
from quire_kernels.ops.linear.int8 import GROUP_SIZE, dequantize_int8, quantize_int8

SHAPES = [
    (1, 1, 1),
    (1, 960, 576),
    (2, 33, 5),
    (3, 16, 63),
    (5, 16, 64),
    (6, 15, 65),
    (7, 17, 100),
    (13, 100, 2500),
    (70, 40, 1030),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DEPTH = 1024


def with_outliers(weight: torch.Tensor, size: float) -> torch.Tensor:
    """The weight with one weight in a thousand `size` times as large, as trained models have."""
    return torch.where(torch.rand_like(weight) < 1e-3, weight * size, weight)


# ---- the quantizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [1.0, 30.0])
def test_no_weight_is_off_by_more_than_half_a_step(dtype: torch.dtype, outliers: float) -> None:
    weight = with_outliers(torch.randn(64, DEPTH), outliers).to(dtype)
    values, scales = quantize_int8(weight)
    step = scales.float().repeat_interleave(GROUP_SIZE, 1)
    error = (dequantize_int8(values, scales) - weight.float()).abs()
    assert (error <= step / 2 * (1 + 1e-6)).all()
    largest = weight.float().unflatten(1, (-1, GROUP_SIZE)).abs().amax(2)
    assert (scales.float() * 127 >= largest * (1 - 1e-6)).all()  # nothing is clipped
    assert (scales.float() * 127 <= largest * (1 + 2**-7 + 1e-6)).all()  # and no step is wasted


def test_the_error_is_that_of_uniform_rounding() -> None:
    """A step s rounds with variance s² / 12 (Bennett 1948) where weights spread over many steps."""
    weight = torch.randn(256, DEPTH)
    values, scales = quantize_int8(weight)
    step = scales.double().repeat_interleave(GROUP_SIZE, 1)
    error = dequantize_int8(values, scales).double() - weight
    assert (error.square().mean() / (step.square().mean() / 12)).item() == pytest.approx(
        1, abs=0.02
    )
    # the largest of 64 normal weights lies at 2.6 sigma: a step of 2 %, an error of 0.6 %
    assert error.square().mean().sqrt().item() == pytest.approx(2.6 / 127 / 12**0.5, rel=0.05)


def test_an_outlier_costs_its_own_group_only() -> None:
    weight = torch.randn(64, DEPTH)
    spoiled = weight.clone()
    spoiled[:, 70] = 300.0
    before, after = (dequantize_int8(*quantize_int8(w)) for w in (weight, spoiled))
    others = torch.arange(DEPTH) // GROUP_SIZE != 70 // GROUP_SIZE
    assert torch.equal(before[:, others], after[:, others])
    assert (after[:, 70] - 300).abs().max() <= 300 / 127 / 2 * (1 + 2**-7)


def test_groups_keep_outlier_weights_far_better_than_one_scale_a_row() -> None:
    """Why there are groups: a row's outlier of 30 sigma would set the step of all its weights."""
    weight = with_outliers(torch.randn(256, DEPTH), 30.0)
    grouped = dequantize_int8(*quantize_int8(weight)) - weight
    step = weight.abs().amax(1, keepdim=True) / 127
    by_row = (weight / step).round() * step - weight
    assert grouped.square().mean().sqrt() < 0.4 * by_row.square().mean().sqrt()


def test_zeros_and_the_smallest_weights() -> None:
    weight = torch.zeros(4, 130)
    weight[1, 5], weight[2, 129], weight[3, 0] = 1e-30, -3e38, 1e-45
    values, scales = quantize_int8(weight)
    back = dequantize_int8(values, scales)
    assert not back[0].any()
    assert back[1, 5].item() == pytest.approx(1e-30, rel=0.01)
    assert back[2, 129].item() == pytest.approx(-3e38, rel=0.01)
    assert torch.isfinite(back).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_every_variant_quantizes_as_the_reference(
    compiled: Backend, rows: int, columns: int, depth: int, dtype: torch.dtype
) -> None:
    del rows
    weight = with_outliers(torch.randn(columns, depth), 20.0).to(dtype)
    packed = compiled.pack_linear(weight, "int8")
    ids = torch.arange(columns)
    assert torch.equal(compiled.embedding(ids, packed), dequantize_int8(*quantize_int8(weight)))


@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    exponents=st.lists(st.integers(-60, 60), min_size=1, max_size=4),
    depth=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_every_magnitude_is_quantized_as_the_reference_does(
    exponents: list[int], depth: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(exponents), depth, generator=generator)
    weight *= torch.tensor([2.0**exponent for exponent in exponents])[:, None]
    ids = torch.arange(len(exponents))
    for isa in available_isas():
        backend = cpp_backend(isa)
        packed = backend.pack_linear(weight, "int8")
        assert torch.equal(backend.embedding(ids, packed), dequantize_int8(*quantize_int8(weight)))


def test_only_float_matrices_are_quantized(cpu_backend: Backend) -> None:
    with pytest.raises(KernelInputError, match="weight must be a floating"):
        cpu_backend.pack_linear(torch.zeros(3, 4, dtype=torch.int8), "int8")


# ---- the product --------------------------------------------------------------------------------


@pytest.mark.parametrize("outliers", [1.0, 30.0])
def test_a_products_error_is_what_the_steps_promise(cpu_backend: Backend, outliers: float) -> None:
    """Independent roundings of variance s² / 12 add up to sum(x² s² / 12) in a product, those of
    the weights and those of x."""
    weight = with_outliers(torch.randn(200, DEPTH), outliers)
    x = torch.randn(50, DEPTH)
    result = cpu_backend.linear(x, cpu_backend.pack_linear(weight, "int8"))
    _, scales = quantize_int8(weight)
    weight_steps = scales.double().repeat_interleave(GROUP_SIZE, 1)
    x_steps = groups(x, GROUP_SIZE).abs().amax(2).double().repeat_interleave(GROUP_SIZE, 1) / 32767
    stored = dequantize_int8(*quantize_int8(weight)).double()
    variance = x.double().square() @ weight_steps.square().T / 12
    variance += x_steps.square() @ stored.square().T / 12
    normed = (result.double() - x.double() @ weight.double().T) / variance.sqrt()
    assert normed.square().mean().sqrt().item() == pytest.approx(1, abs=0.1)
    assert normed.abs().max().item() < 6
