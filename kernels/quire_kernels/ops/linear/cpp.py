"""`linear` in C++: panels packed once, then one call."""

import ctypes
import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.ops.linear.int8 import GROUP_SIZE, not_finite
from quire_kernels.ops.linear.packed import (
    PANEL_ROWS,
    PackedLinear,
    Quantization,
    WeightFormat,
    WeightRows,
)

# WeightFormat in kernel.h
_CODES: dict[WeightFormat, int] = {
    "panels-bf16": 0,
    "panels-fp16": 1,
    "panels-fp32": 2,
    "panels-int8": 3,
}
# What they are made from. A weight in another dtype is taken as float32.
_DTYPES: dict[WeightFormat, torch.dtype] = {
    "panels-bf16": torch.bfloat16,
    "panels-fp16": torch.float16,
    "panels-fp32": torch.float32,
}
_FORMATS: dict[torch.dtype, WeightFormat] = {
    torch.bfloat16: "panels-bf16",
    torch.float16: "panels-fp16",
}
# the calls' arguments as csrc/variant.cpp lays them out
_PACK = struct.Struct("5q").pack
_LINEAR = struct.Struct("10q").pack
_EMBEDDING = struct.Struct("7q").pack


class CppLinear:
    """pack_linear, linear and embedding of one compiled variant."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._pack = library.quire_pack
        self._pack_int8 = library.quire_pack_int8
        self._linear = library.quire_linear
        self._embedding = library.quire_embedding

    def pack(
        self, weight: torch.Tensor | WeightRows, quantization: Quantization | None = None
    ) -> PackedLinear:
        """Panels of a weight [N, K] in the narrowest format that loses nothing, or in int8."""
        rows = WeightRows.of(weight)
        if rows.device.type != "cpu":
            raise KernelInputError(f"weight must be on the CPU, got one on {rows.device}")
        if quantization == "int8":
            return self._quantized(rows)
        own_format = _FORMATS.get(rows.dtype)
        if own_format is None:
            # Most weights that bf16 cannot hold show it in their first rows.
            packed = self._panels(rows, "panels-bf16") or self._panels(rows, "panels-fp32")
        else:
            packed = self._panels(rows, own_format)
        assert packed is not None
        return packed

    def _panels(self, rows: WeightRows, panel_format: WeightFormat) -> PackedLinear | None:
        """None where bf16 would lose something of wider weights."""
        depth = rows.shape[1]
        dtype = torch.float32 if panel_format == "panels-fp32" else torch.int16
        panels = torch.empty((_num_panels(rows), depth, PANEL_ROWS), dtype=dtype)
        code = _CODES[panel_format]
        for begin, chunk in rows.chunks():
            source = chunk.to(_DTYPES[panel_format]).contiguous()
            if panel_format == "panels-bf16" and _loses(chunk, source):
                return None
            place = panels[begin // PANEL_ROWS :].data_ptr()
            self._pack(_PACK(source.data_ptr(), code, len(source), depth, place))
        return PackedLinear(rows.shape, panel_format, panels, panels.data_ptr(), code)

    def _quantized(self, rows: WeightRows) -> PackedLinear:
        depth = rows.shape[1]
        scale_bytes = -(-depth // GROUP_SIZE) * PANEL_ROWS * torch.bfloat16.itemsize
        panels = torch.empty(
            (_num_panels(rows), scale_bytes + depth * PANEL_ROWS), dtype=torch.uint8
        )
        for begin, chunk in rows.chunks():
            source_format = _FORMATS.get(chunk.dtype, "panels-fp32")
            source = chunk.to(_DTYPES[source_format]).contiguous()
            place = panels[begin // PANEL_ROWS :].data_ptr()
            code = _CODES[source_format]
            bad = self._pack_int8(_PACK(source.data_ptr(), code, len(source), depth, place))
            if bad >= 0:
                raise not_finite(begin + bad)
        return PackedLinear(
            rows.shape, "panels-int8", panels, panels.data_ptr(), _CODES["panels-int8"]
        )

    def linear(
        self,
        x: torch.Tensor,
        weight: PackedLinear,
        bias: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See quire_kernels.linear."""
        num_columns, depth = weight.shape
        shape, strides = x.shape, x.stride()
        if (
            len(shape) != 2
            or shape[1] != depth
            or x.dtype is not torch.float32
            or (strides[1] != 1 and depth > 1)
        ):
            raise bad_input(
                f"x must be float32 [T, {depth}] with unit stride for a weight {weight.shape}", x=x
            )
        num_rows = shape[0]
        if out is None:
            out = torch.empty(num_rows, num_columns, dtype=torch.float32)
        elif out.shape != (num_rows, num_columns) or not _is_plain(out):
            raise bad_input(
                f"out must be a contiguous float32 [{num_rows}, {num_columns}]", out=out
            )
        bias_address = 0
        if bias is not None:
            if bias.shape != (num_columns,) or not _is_plain(bias):
                raise bad_input(f"bias must be a contiguous float32 [{num_columns}]", bias=bias)
            bias_address = bias.data_ptr()
        self._linear(
            _LINEAR(
                *(x.data_ptr(), strides[0], num_rows, weight.address, weight.code),
                *(num_columns, depth, bias_address, out.data_ptr(), num_columns),
            )
        )
        return out

    def embedding(self, ids: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """See quire_kernels.embedding."""
        if ids.dim() != 1 or ids.dtype is not torch.int64 or not ids.is_contiguous():
            raise bad_input("ids must be a contiguous int64 [T]", ids=ids)
        num_columns, depth = weight.shape
        out = torch.empty(ids.shape[0], depth, dtype=torch.float32)
        bad = self._embedding(
            _EMBEDDING(
                *(ids.data_ptr(), ids.shape[0], weight.address, weight.code),
                *(num_columns, depth, out.data_ptr()),
            )
        )
        if bad >= 0:
            raise KernelInputError(
                f"ids must lie in [0, {num_columns}), got {int(ids[bad])} at index {bad}"
            )
        return out


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_contiguous()


def _num_panels(rows: WeightRows) -> int:
    return -(-rows.shape[0] // PANEL_ROWS)


def _loses(chunk: torch.Tensor, narrow: torch.Tensor) -> bool:
    return chunk.dtype != narrow.dtype and not torch.equal(narrow.to(chunk.dtype), chunk)
