"""Int4 weights: the quantizer against the rounding error that arithmetic promises."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_kernels.backends import Backend, cpp_backend
from quire_kernels.library import available_isas
from quire_kernels.ops.linear.groups import groups
from quire_kernels.ops.linear.int4 import GROUP_SIZE, dequantize_int4, quantize_int4

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DEPTH = 1024


def with_outliers(weight: torch.Tensor, size: float) -> torch.Tensor:
    """The weight with one weight in a thousand `size` times as large, as trained models have."""
    return torch.where(torch.rand_like(weight) < 1e-3, weight * size, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [1.0, 30.0])
def test_no_weight_is_off_by_more_than_half_a_step(dtype: torch.dtype, outliers: float) -> None:
    weight = with_outliers(torch.randn(64, DEPTH), outliers).to(dtype)
    values, scales, minimums = quantize_int4(weight)
    step = scales.float().repeat_interleave(GROUP_SIZE, 1)
    error = (dequantize_int4(values, scales, minimums) - weight.float()).abs()
    assert (error <= step / 2 * (1 + 1e-5)).all()
    parts = weight.float().unflatten(1, (-1, GROUP_SIZE))
    least, most = parts.amin(2), parts.amax(2)
    assert (minimums.float() <= least).all()
    assert (scales.float() * 15 + minimums.float() >= most - 1e-5 * most.abs()).all()
    # two roundings to bfloat16 outwards, of 2^-7 at most each, are all that the range may grow
    widest = (most - least) + least.abs() * 2**-7
    assert (scales.float() * 15 <= widest * (1 + 2**-7 + 1e-5)).all()


def test_the_error_is_that_of_uniform_rounding() -> None:
    """A step s rounds with variance s² / 12 (Bennett 1948) where weights spread over many steps."""
    weight = torch.randn(256, DEPTH)
    values, scales, minimums = quantize_int4(weight)
    step = scales.double().repeat_interleave(GROUP_SIZE, 1)
    error = dequantize_int4(values, scales, minimums).double() - weight
    # a little less, as the extremes of a group lie near the grid's ends
    assert error.square().mean().item() == pytest.approx(step.square().mean().item() / 12, rel=0.1)
    # the range of 32 normal weights is 4.1 sigma: a step of 28 %, an error of 8 %
    assert error.square().mean().sqrt().item() == pytest.approx(4.1 / 15 / 12**0.5, rel=0.07)


def test_a_group_on_one_side_of_zero_uses_its_whole_grid() -> None:
    """Why there are minimums: a symmetric grid would waste half of it or more."""
    weight = torch.rand(64, DEPTH) + 3
    error = dequantize_int4(*quantize_int4(weight)) - weight
    assert error.abs().max() <= (1 + 4 * 2**-7) / 15 / 2 * (1 + 2**-7)


def test_an_outlier_costs_its_own_group_only() -> None:
    weight = torch.randn(64, DEPTH)
    spoiled = weight.clone()
    spoiled[:, 70] = 300.0
    before, after = (dequantize_int4(*quantize_int4(w)) for w in (weight, spoiled))
    others = torch.arange(DEPTH) // GROUP_SIZE != 70 // GROUP_SIZE
    assert torch.equal(before[:, others], after[:, others])


def test_zeros_constants_and_extremes() -> None:
    weight = torch.zeros(5, 70)
    weight[1], weight[2, ::2], weight[3, 0], weight[4] = 0.3, -1e38, 1e-45, -1e-30
    weight[2, 1::2] = 1e38
    back = dequantize_int4(*quantize_int4(weight))
    assert not back[0].any()
    torch.testing.assert_close(back[1], weight[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(back[2], weight[2], rtol=0.01, atol=0)
    torch.testing.assert_close(back[4], weight[4], rtol=1e-3, atol=0)
    assert torch.isfinite(back).all()


@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    exponents=st.lists(st.integers(-60, 60), min_size=1, max_size=4),
    shift=st.floats(-3, 3),
    depth=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES[::2]),
    seed=st.integers(0, 1000),
)
def test_every_variant_quantizes_as_the_reference(
    exponents: list[int], shift: float, depth: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(exponents), depth, generator=generator) + shift
    weight *= torch.tensor([2.0**exponent for exponent in exponents])[:, None]
    weight = weight.to(dtype)
    ids = torch.arange(len(exponents))
    for isa in available_isas():
        backend = cpp_backend(isa)
        packed = backend.pack_linear(weight, "int4")
        assert torch.equal(backend.embedding(ids, packed), dequantize_int4(*quantize_int4(weight)))


@pytest.mark.parametrize("outliers", [1.0, 30.0])
def test_a_products_error_is_what_the_steps_promise(cpu_backend: Backend, outliers: float) -> None:
    """Independent roundings of variance s² / 12 add up to sum(x² s² / 12) in a product, those of
    the weights and those of x."""
    weight = with_outliers(torch.randn(200, DEPTH), outliers)
    x = torch.randn(50, DEPTH)
    result = cpu_backend.linear(x, cpu_backend.pack_linear(weight, "int4"))
    _, scales, _ = quantize_int4(weight)
    weight_steps = scales.double().repeat_interleave(GROUP_SIZE, 1)
    x_steps = groups(x, GROUP_SIZE).abs().amax(2).double().repeat_interleave(GROUP_SIZE, 1) / 127
    stored = dequantize_int4(*quantize_int4(weight)).double()
    variance = x.double().square() @ weight_steps.square().T / 12
    variance += x_steps.square() @ stored.square().T / 12
    normed = (result.double() - x.double() @ weight.double().T) / variance.sqrt()
    assert normed.square().mean().sqrt().item() == pytest.approx(1, abs=0.12)
