"""The torch reference of `linear`."""

import torch
import torch.nn.functional as F

from quire_kernels.ops.linear.packed import PackedLinear


def pack_linear(weight: torch.Tensor) -> PackedLinear:
    """Keep `weight` [N, K] as it is."""
    num_rows, num_columns = weight.shape
    return PackedLinear((num_rows, num_columns), "dense", weight.detach().contiguous())


def linear(
    x: torch.Tensor,
    weight: PackedLinear,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, in x's dtype."""
    result = F.linear(x, weight.data.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return result if out is None else out.copy_(result)


def embedding(ids: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
    """Rows `ids` [T] of the weight [N, K]: float32 on a CPU, the weight's dtype elsewhere."""
    rows = weight.data[ids]
    return rows.float() if rows.device.type == "cpu" else rows
