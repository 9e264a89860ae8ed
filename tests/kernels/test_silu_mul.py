import pytest
import torch

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend


@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (3, 1), (7, 17), (20, 100)])
@pytest.mark.parametrize("magnitude", [1.0, 30.0, 1000.0])
def test_equals_double_precision(
    cpu_backend: Backend, rows: int, width: int, magnitude: float
) -> None:
    gate_up = torch.randn(rows, 2 * width) * magnitude
    gate, up = gate_up.double().chunk(2, -1)
    expected = gate * torch.sigmoid(gate) * up
    # silu(-87) and what lies beyond it is 1e-36 or nothing: no one tells them apart
    torch.testing.assert_close(
        cpu_backend.silu_mul(gate_up).double(), expected, atol=1e-30, rtol=1e-6
    )


def test_exponential_is_within_two_ulp(compiled: Backend) -> None:
    """silu(x) * (1 / x) is 1 / (1 + e^-x): for x << 0 that is e^x, rounded a few times."""
    x = torch.linspace(-80, -17, 20001)
    result = compiled.silu_mul(torch.stack((x, 1 / x), dim=-1))[:, 0]
    expected = x.double().exp()
    assert ((result.double() - expected).abs() / expected).max() < 4 * torch.finfo().eps


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_special_values(cpu_backend: Backend, value: float) -> None:
    result = cpu_backend.silu_mul(torch.tensor([[value, 2.0]]))
    torch.testing.assert_close(result, torch.tensor([[2 * value]]), equal_nan=True)


def test_bitwise_the_same_at_any_number_of_rows(compiled: Backend) -> None:
    gate_up = torch.randn(40, 2 * 301)
    together = compiled.silu_mul(gate_up)
    for row in range(40):
        assert torch.equal(compiled.silu_mul(gate_up[row : row + 1])[0], together[row])


def test_writes_into_out(cpu_backend: Backend) -> None:
    gate_up, out = torch.randn(4, 20), torch.empty(4, 10)
    assert cpu_backend.silu_mul(gate_up, out) is out
    assert torch.equal(out, cpu_backend.silu_mul(gate_up))


def test_bad_input_is_named(compiled: Backend) -> None:
    with pytest.raises(KernelInputError, match="gate_up must be"):
        compiled.silu_mul(torch.zeros(2, 3))
    with pytest.raises(KernelInputError, match="out must be"):
        compiled.silu_mul(torch.zeros(2, 4), torch.zeros(2, 3))
