"""The torch reference of `linear`."""

import torch
import torch.nn.functional as F

from quire_kernels.ops.linear.int8 import dequantize_int8, quantize_int8
from quire_kernels.ops.linear.packed import PackedLinear, Quantization


def pack_linear(weight: torch.Tensor, quantization: Quantization | None = None) -> PackedLinear:
    """Keep `weight` [N, K] as it is, or as int8 values and their scales."""
    num_rows, num_columns = weight.shape
    if quantization is None:
        return PackedLinear((num_rows, num_columns), "dense", weight.detach().contiguous())
    values, scales = quantize_int8(weight)
    return PackedLinear((num_rows, num_columns), "dense-int8", values, scales=scales)


def linear(
    x: torch.Tensor,
    weight: PackedLinear,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, in x's dtype."""
    dense = _dense(weight.data, weight.scales).to(x.dtype)
    result = F.linear(x, dense, None if bias is None else bias.to(x.dtype))
    return result if out is None else out.copy_(result)


def embedding(ids: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
    """Rows `ids` [T] of the weight [N, K]: float32 on a CPU, the weight's dtype elsewhere."""
    rows = _dense(weight.data[ids], None if weight.scales is None else weight.scales[ids])
    return rows.float() if rows.device.type == "cpu" else rows


def _dense(data: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return data if scales is None else dequantize_int8(data, scales)
