"""`linear` in C++: panels packed once, then one call."""

import struct
from dataclasses import dataclass

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.library import Library
from quire_kernels.ops.linear.gguf import BLOCKS, check_rows
from quire_kernels.ops.linear.groups import not_finite
from quire_kernels.ops.linear.packed import (
    PANEL_ROWS,
    GgufRows,
    GgufType,
    PackedLinear,
    Quantization,
    WeightFormat,
    WeightRows,
    row_chunks,
)

# WeightFormat in kernel.h
_CODES: dict[WeightFormat, int] = {
    "panels-bf16": 0,
    "panels-fp16": 1,
    "panels-fp32": 2,
    "panels-int8": 3,
    "panels-int4": 4,
    "panels-q4": 5,
    "panels-q8": 6,
    "panels-q4_k": 7,
    "panels-q6_k": 8,
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


_WORD = 32  # bytes, kWord in grouped.h


@dataclass(frozen=True)
class _Groups:
    """Bytes of a panel of small integers: `header` before each `size` of k, then `row` at each k,
    whole words of them."""

    size: int
    header: int
    row: int

    def panel_bytes(self, depth: int) -> int:
        return -(-depth // self.size) * self.header + -(-depth * self.row // _WORD) * _WORD


# As in grouped.h; a K format's 256 of k count as one group, its inner scales in the header.
_GROUPS: dict[WeightFormat, _Groups] = {
    "panels-int8": _Groups(64, 32, 16),
    "panels-int4": _Groups(32, 64, 8),
    "panels-q4": _Groups(32, 64, 8),
    "panels-q8": _Groups(32, 32, 16),
    "panels-q4_k": _Groups(256, 64 + 8 * 32, 8),
    "panels-q6_k": _Groups(256, 32 + 16 * 16, 16),
}


_FROM_GGUF: dict[GgufType, WeightFormat] = {
    "Q4_0": "panels-q4",
    "Q4_1": "panels-q4",
    "Q8_0": "panels-q8",
    "Q4_K": "panels-q4_k",
    "Q6_K": "panels-q6_k",
}
# the calls' arguments as csrc/variant.cpp lays them out
_PACK = struct.Struct("5q").pack
_LINEAR = struct.Struct("10q").pack
_EMBEDDING = struct.Struct("7q").pack


class CppLinear:
    """pack_linear, linear and embedding of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._pack = library.function("quire_pack")
        self._quantize_to = {
            "int8": library.function("quire_pack_int8"),
            "int4": library.function("quire_pack_int4"),
        }
        self._pack_gguf = library.function("quire_pack_gguf")
        self._linear = library.function("quire_linear")
        self._embedding = library.function("quire_embedding")

    def pack(
        self, weight: torch.Tensor | WeightRows, quantization: Quantization | None = None
    ) -> PackedLinear:
        """Panels of a weight [N, K] in the narrowest format that loses nothing, or quantized."""
        rows = WeightRows.of(weight)
        if rows.device.type != "cpu":
            raise KernelInputError(f"weight must be on the CPU, got one on {rows.device}")
        if quantization is not None:
            return self._quantized(rows, quantization)
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

    def _quantized(self, rows: WeightRows, quantization: Quantization) -> PackedLinear:
        becomes: WeightFormat = "panels-int8" if quantization == "int8" else "panels-int4"
        packed, quantize = _empty_panels(becomes, rows.shape), self._quantize_to[quantization]
        for begin, chunk in rows.chunks():
            source_format = _FORMATS.get(chunk.dtype, "panels-fp32")
            source = chunk.to(_DTYPES[source_format]).contiguous()
            place = packed.data[begin // PANEL_ROWS :].data_ptr()
            code, depth = _CODES[source_format], rows.shape[1]
            bad = quantize(_PACK(source.data_ptr(), code, len(source), depth, place))
            if bad >= 0:
                raise not_finite(begin + bad)
        return packed

    def pack_gguf(self, weight: GgufRows) -> PackedLinear:
        """See quire_kernels.pack_gguf."""
        packed, depth = _empty_panels(_FROM_GGUF[weight.gguf_type], weight.shape), weight.shape[1]
        number = BLOCKS[weight.gguf_type].number
        for begin, end in row_chunks(weight.shape):
            blocks = weight.read(begin, end).contiguous()
            check_rows(blocks, weight.gguf_type, depth)
            place = packed.data[begin // PANEL_ROWS :].data_ptr()
            self._pack_gguf(_PACK(blocks.data_ptr(), number, len(blocks), depth, place))
        return packed

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

    def embedding(
        self, ids: torch.Tensor, weight: PackedLinear, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See quire_kernels.embedding."""
        if ids.dim() != 1 or ids.dtype is not torch.int64 or not ids.is_contiguous():
            raise bad_input("ids must be a contiguous int64 [T]", ids=ids)
        num_columns, depth = weight.shape
        num_ids = ids.shape[0]
        if out is None:
            out = torch.empty(num_ids, depth, dtype=torch.float32)
        elif out.shape != (num_ids, depth) or not _is_plain(out):
            raise bad_input(f"out must be a contiguous float32 [{num_ids}, {depth}]", out=out)
        bad = self._embedding(
            _EMBEDDING(
                *(ids.data_ptr(), num_ids, weight.address, weight.code),
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


def _empty_panels(panel_format: WeightFormat, shape: tuple[int, int]) -> PackedLinear:
    """Panels of small integers, still to be filled."""
    size = _GROUPS[panel_format].panel_bytes(shape[1])
    data = torch.empty((-(-shape[0] // PANEL_ROWS), size), dtype=torch.uint8)
    return PackedLinear(shape, panel_format, data, data.data_ptr(), _CODES[panel_format])


def _num_panels(rows: WeightRows) -> int:
    return -(-rows.shape[0] // PANEL_ROWS)


def _loses(chunk: torch.Tensor, narrow: torch.Tensor) -> bool:
    return chunk.dtype != narrow.dtype and not torch.equal(narrow.to(chunk.dtype), chunk)
