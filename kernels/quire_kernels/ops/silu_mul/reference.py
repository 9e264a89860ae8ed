"""The torch reference of `silu_mul`."""

import torch
import torch.nn.functional as F


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up for gate_up [T, 2*I] = gate | up.

    On a CPU in float32 throughout: the meaning that kernels are held against. On a GPU it serves,
    and makes one [T, I] in gate_up's own dtype: that is what memory plans count.
    """
    if gate_up.is_cuda:
        gate, up = gate_up.chunk(2, dim=-1)
        product = F.silu(gate).mul_(up)
        return product if out is None else out.copy_(product)
    gate, up = gate_up.float().chunk(2, dim=-1)
    result = (F.silu(gate) * up).to(gate_up.dtype)
    return result if out is None else out.copy_(result)
