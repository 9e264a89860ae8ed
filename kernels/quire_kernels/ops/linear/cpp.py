"""`linear` in C++: panels packed once, then one call."""

import ctypes
import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.ops.linear.int8 import GROUP_SIZE, not_finite
from quire_kernels.ops.linear.packed import PackedLinear, Quantization, WeightFormat

# WeightFormat in kernel.h
_CODES: dict[WeightFormat, int] = {
    "panels-bf16": 0,
    "panels-fp16": 1,
    "panels-fp32": 2,
    "panels-int8": 3,
}
_LANES = 16
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

    def pack(self, weight: torch.Tensor, quantization: Quantization | None = None) -> PackedLinear:
        """Panels of `weight` [N, K] in the narrowest format that loses nothing, or in int8."""
        if weight.dim() != 2 or not weight.dtype.is_floating_point or weight.device.type != "cpu":
            raise bad_input("weight must be a floating [N, K] on the CPU", weight=weight)
        if quantization == "int8":
            return self._quantize(weight)
        num_columns, depth = weight.shape
        source, panel_format = _narrow(weight.detach())
        num_panels = -(-num_columns // _LANES)
        dtype = torch.float32 if panel_format == "panels-fp32" else torch.int16
        panels = torch.empty((num_panels, depth, _LANES), dtype=dtype)
        code = _CODES[panel_format]
        self._pack(_PACK(source.data_ptr(), code, num_columns, depth, panels.data_ptr()))
        return PackedLinear((num_columns, depth), panel_format, panels, panels.data_ptr(), code)

    def _quantize(self, weight: torch.Tensor) -> PackedLinear:
        num_columns, depth = weight.shape
        source, source_format = _plain(weight.detach())
        scale_bytes = -(-depth // GROUP_SIZE) * _LANES * torch.bfloat16.itemsize
        num_panels = -(-num_columns // _LANES)
        panels = torch.empty((num_panels, scale_bytes + depth * _LANES), dtype=torch.uint8)
        code = _CODES[source_format]
        bad = self._pack_int8(_PACK(source.data_ptr(), code, num_columns, depth, panels.data_ptr()))
        if bad >= 0:
            raise not_finite(bad)
        return PackedLinear(
            (num_columns, depth), "panels-int8", panels, panels.data_ptr(), _CODES["panels-int8"]
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


def _plain(weight: torch.Tensor) -> tuple[torch.Tensor, WeightFormat]:
    """The weight, contiguous, in its own 16 bits, or else in float32."""
    if weight.dtype is torch.bfloat16:
        return weight.contiguous(), "panels-bf16"
    if weight.dtype is torch.float16:
        return weight.contiguous(), "panels-fp16"
    return weight.float().contiguous(), "panels-fp32"


def _narrow(weight: torch.Tensor) -> tuple[torch.Tensor, WeightFormat]:
    """The weight, contiguous, in the narrowest format that holds every value exactly."""
    plain, plain_format = _plain(weight)
    if plain_format != "panels-fp32":
        return plain, plain_format
    narrow = plain.bfloat16()
    if torch.equal(narrow.float(), plain):
        return narrow, "panels-bf16"
    return plain, "panels-fp32"
