import pytest
import torch

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend

SHAPES = [(1, 576), (7, 64), (3, 1), (5, 17), (40, 1000)]


def expected(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
def test_equals_double_precision(
    cpu_backend: Backend, rows: int, width: int, magnitude: float
) -> None:
    x, weight = torch.randn(rows, width) * magnitude, torch.randn(width)
    result = cpu_backend.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(result.double(), expected(x, weight, 1e-5), atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_adds_the_residual_first(cpu_backend: Backend, rows: int, width: int) -> None:
    x, residual, weight = torch.randn(rows, width), torch.randn(rows, width), torch.randn(width)
    before = residual.clone()
    normed, total = cpu_backend.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + before)
    assert torch.equal(residual, before)
    assert torch.equal(normed, cpu_backend.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_in_place_gives_the_same_bits(cpu_backend: Backend, rows: int, width: int) -> None:
    x, residual, weight = torch.randn(rows, width), torch.randn(rows, width), torch.randn(width)
    normed, total = cpu_backend.add_rms_norm(x, residual, weight, 1e-5)
    over = cpu_backend.add_rms_norm(x, residual, weight, 1e-5, in_place=True)
    assert over[0] is x
    assert over[1] is residual
    assert torch.equal(x, normed)
    assert torch.equal(residual, total)


def test_what_is_written_over_must_lie_together(compiled: Backend) -> None:
    x, weight = torch.randn(4, 40)[:, :20], torch.randn(20)
    with pytest.raises(KernelInputError, match="to be written over"):
        compiled.add_rms_norm(x, torch.randn(4, 20), weight, 1e-5, in_place=True)


def test_bitwise_the_same_at_any_number_of_rows(compiled: Backend) -> None:
    x, weight = torch.randn(50, 333), torch.randn(333)
    together = compiled.rms_norm(x, weight, 1e-5)
    for row in range(50):
        assert torch.equal(compiled.rms_norm(x[row : row + 1], weight, 1e-5)[0], together[row])


def test_writes_into_out(cpu_backend: Backend) -> None:
    x, weight, out = torch.randn(4, 20), torch.randn(20), torch.empty(4, 20)
    assert cpu_backend.rms_norm(x, weight, 1e-5, out) is out
    assert torch.equal(out, cpu_backend.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("tokens", [1, 7])
def test_norms_heads_where_they_lie(cpu_backend: Backend, tokens: int) -> None:
    """As the engine has them: some of the heads of a fused buffer, and nothing else is touched."""
    fused, weight = torch.randn(tokens, 5, 24), torch.randn(24)
    before = fused.clone()
    query = fused[:, 1:4]
    expected = cpu_backend.rms_norm(query.reshape(-1, 24), weight, 1e-5).view(query.shape)
    assert torch.equal(cpu_backend.rms_norm(query, weight, 1e-5), expected)
    assert cpu_backend.rms_norm(query, weight, 1e-5, out=query) is query
    assert torch.equal(query, expected)
    assert torch.equal(fused[:, [0, 4]], before[:, [0, 4]])


def test_bad_input_is_named(compiled: Backend) -> None:
    x, weight = torch.randn(4, 20), torch.randn(20)
    with pytest.raises(KernelInputError, match=r"weight float32 \[H\]"):
        compiled.rms_norm(x, weight[:19], 1e-5)
    with pytest.raises(KernelInputError, match="residual must be"):
        compiled.add_rms_norm(x, x[:3], weight, 1e-5)
    with pytest.raises(KernelInputError, match="out must be"):
        compiled.rms_norm(x, weight, 1e-5, torch.empty(4, 21))
    with pytest.raises(KernelInputError, match=r"\[T, heads, H\]"):
        compiled.rms_norm(torch.randn(4, 20, 3).transpose(1, 2), weight, 1e-5)
    with pytest.raises(KernelInputError, match="residual must be"):
        compiled.add_rms_norm(x.view(2, 2, 20), x.view(2, 2, 20), weight, 1e-5)
