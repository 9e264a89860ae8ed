import pytest
import torch

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend


def table(num_positions: int, dim: int) -> torch.Tensor:
    angles = torch.outer(torch.arange(num_positions), 10000 ** -torch.arange(0, 1, 2 / dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 40), (2, 1, 2)])
def test_rotates_pairs_as_complex_numbers(
    cpu_backend: Backend, heads: int, kv_heads: int, dim: int
) -> None:
    fused = torch.randn(6, heads + 2 * kv_heads, dim)
    before = fused.clone()
    positions, cos_sin = torch.tensor([0, 3, 9, 9, 1, 2]), table(10, dim)
    query, key = fused[:, :heads], fused[:, heads : heads + kv_heads]
    cpu_backend.rope(query, key, positions, cos_sin)
    turn = torch.complex(*cos_sin[positions].double().unsqueeze(1).chunk(2, -1))
    expected = torch.complex(*before.double().chunk(2, -1)) * turn
    rotated = torch.complex(*fused.double().chunk(2, -1))
    torch.testing.assert_close(
        rotated[:, : heads + kv_heads], expected[:, : heads + kv_heads], atol=1e-6, rtol=1e-6
    )
    assert torch.equal(fused[:, heads + kv_heads :], before[:, heads + kv_heads :])


def test_position_zero_changes_nothing(cpu_backend: Backend) -> None:
    query, key = torch.randn(1, 2, 8), torch.randn(1, 1, 8)
    before = query.clone()
    cpu_backend.rope(query, key, torch.tensor([0]), table(1, 8))
    assert torch.equal(query, before)


@pytest.mark.parametrize("bad", [-1, 4])
def test_positions_outside_are_refused(compiled: Backend, bad: int) -> None:
    query, key = torch.randn(2, 2, 8), torch.randn(2, 1, 8)
    before = query.clone()
    with pytest.raises(KernelInputError, match=rf"\[0, 4\).*got {bad} for token 1"):
        compiled.rope(query, key, torch.tensor([0, bad]), table(4, 8))
    assert torch.equal(query, before)


def test_bad_input_is_named(compiled: Backend) -> None:
    query, key, positions = torch.randn(2, 2, 8), torch.randn(2, 1, 8), torch.tensor([0, 1])
    with pytest.raises(KernelInputError, match="query and key must be"):
        compiled.rope(query, key[:1], positions, table(4, 8))
    with pytest.raises(KernelInputError, match=r"positions must be int64 \[2\]"):
        compiled.rope(query, key, positions.int(), table(4, 8))
    with pytest.raises(KernelInputError, match="cos_sin must be"):
        compiled.rope(query, key, positions, table(4, 6))
