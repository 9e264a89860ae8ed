"""The torch reference of `linear`."""

import torch
import torch.nn.functional as F

from quire_kernels.ops.linear import int4, int8
from quire_kernels.ops.linear.gguf import BLOCKS, check_rows, dequantize
from quire_kernels.ops.linear.groups import round_rows
from quire_kernels.ops.linear.packed import (
    GgufRows,
    PackedLinear,
    Quantization,
    WeightRows,
    row_chunks,
)


def pack_linear(
    weight: torch.Tensor | WeightRows, quantization: Quantization | None = None
) -> PackedLinear:
    """Keep a weight [N, K] as it is, or as small values, their scales and minimums."""
    if isinstance(weight, torch.Tensor) and quantization is None:
        num_rows, depth = weight.shape
        return PackedLinear((num_rows, depth), "dense", weight.detach().contiguous())
    rows = WeightRows.of(weight)
    if quantization is None:
        data = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for begin, chunk in rows.chunks():
            data[begin : begin + len(chunk)] = chunk
        return PackedLinear(rows.shape, "dense", data)
    return _in_int8(rows) if quantization == "int8" else _in_int4(rows)


def pack_gguf(weight: GgufRows) -> PackedLinear:
    """The blocks as they are; each call of `linear` widens all of them."""
    num_rows, depth = weight.shape
    data = torch.empty(num_rows, BLOCKS[weight.gguf_type].row_bytes(depth), dtype=torch.uint8)
    for begin, end in row_chunks(weight.shape):
        blocks = weight.read(begin, end)
        check_rows(blocks, weight.gguf_type, depth)
        data[begin:end] = blocks
    return PackedLinear(weight.shape, "dense-gguf", data, gguf_type=weight.gguf_type)


def _in_int8(rows: WeightRows) -> PackedLinear:
    values = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scales = _a_group(rows, int8.GROUP_SIZE)
    for begin, chunk in rows.chunks():
        place = slice(begin, begin + len(chunk))
        values[place], scales[place] = int8.quantize_int8(chunk, begin)
    return PackedLinear(rows.shape, "dense-int8", values, scales=scales)


def _in_int4(rows: WeightRows) -> PackedLinear:
    values = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    scales, minimums = _a_group(rows, int4.GROUP_SIZE), _a_group(rows, int4.GROUP_SIZE)
    for begin, chunk in rows.chunks():
        place = slice(begin, begin + len(chunk))
        values[place], scales[place], minimums[place] = int4.quantize_int4(chunk, begin)
    return PackedLinear(rows.shape, "dense-int4", values, scales=scales, minimums=minimums)


def _a_group(rows: WeightRows, size: int) -> torch.Tensor:
    """Room for one bfloat16 for each row and group."""
    num_rows, depth = rows.shape
    return torch.empty(num_rows, -(-depth // size), dtype=torch.bfloat16, device=rows.device)


def linear(
    x: torch.Tensor,
    weight: PackedLinear,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, in x's dtype."""
    dense = _rows(weight, slice(None)).to(x.dtype)
    if (rounding := _rounding(weight)) is not None:
        x = round_rows(x, *rounding)
    result = F.linear(x, dense, None if bias is None else bias.to(x.dtype))
    return result if out is None else out.copy_(result)


def _rounding(weight: PackedLinear) -> tuple[int, int] | None:
    """What `round_rows` does to x before a product with this weight."""
    if weight.gguf_type is not None:
        return BLOCKS[weight.gguf_type].group_size, BLOCKS[weight.gguf_type].x_bits
    if weight.scales is None:
        return None
    return int8.ROUNDING if weight.minimums is None else int4.ROUNDING


def embedding(
    ids: torch.Tensor, weight: PackedLinear, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows `ids` [T] of the weight [N, K]: float32 on a CPU, the weight's dtype elsewhere."""
    rows = _rows(weight, ids)
    result = rows.float() if rows.device.type == "cpu" else rows
    return result if out is None else out.copy_(result)


def _rows(weight: PackedLinear, which: torch.Tensor | slice) -> torch.Tensor:
    """These rows of the weight [N, K], as what they stand for."""
    data = weight.data[which]
    if weight.gguf_type is not None:
        return dequantize(data, weight.gguf_type, weight.shape[1])
    if weight.scales is None:
        return data
    if weight.minimums is None:
        return int8.dequantize_int8(data, weight.scales[which])
    return int4.dequantize_int4(data, weight.scales[which], weight.minimums[which])
