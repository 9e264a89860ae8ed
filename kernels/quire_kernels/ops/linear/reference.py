"""The torch reference of `linear`."""

import torch
import torch.nn.functional as F

from quire_kernels.ops.linear.int8 import GROUP_SIZE, dequantize_int8, quantize_int8
from quire_kernels.ops.linear.packed import PackedLinear, Quantization, WeightRows


def pack_linear(
    weight: torch.Tensor | WeightRows, quantization: Quantization | None = None
) -> PackedLinear:
    """Keep a weight [N, K] as it is, or as int8 values and their scales."""
    if isinstance(weight, torch.Tensor) and quantization is None:
        num_rows, depth = weight.shape
        return PackedLinear((num_rows, depth), "dense", weight.detach().contiguous())
    rows = WeightRows.of(weight)
    if quantization is None:
        data = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for begin, chunk in rows.chunks():
            data[begin : begin + len(chunk)] = chunk
        return PackedLinear(rows.shape, "dense", data)
    return _quantized(rows)


def _quantized(rows: WeightRows) -> PackedLinear:
    num_rows, depth = rows.shape
    values = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    num_groups = -(-depth // GROUP_SIZE)
    scales = torch.empty(num_rows, num_groups, dtype=torch.bfloat16, device=rows.device)
    for begin, chunk in rows.chunks():
        place = slice(begin, begin + len(chunk))
        values[place], scales[place] = quantize_int8(chunk, begin)
    return PackedLinear(rows.shape, "dense-int8", values, scales=scales)


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
