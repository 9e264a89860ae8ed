"""The torch reference of `silu_mul`."""

import torch
import torch.nn.functional as F


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up for gate_up [T, 2*I] = gate | up."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    result = (F.silu(gate) * up).to(gate_up.dtype)
    return result if out is None else out.copy_(result)
