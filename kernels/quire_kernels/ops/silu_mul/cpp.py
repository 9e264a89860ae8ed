"""`silu_mul` in C++."""

import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.library import Library

# the call's arguments as csrc/variant.cpp lays them out
_CALL = struct.Struct("4q").pack


class CppSiluMul:
    """The gated activation of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._silu_mul = library.function("quire_silu_mul")

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See quire_kernels.silu_mul."""
        shape = gate_up.shape
        if (
            len(shape) != 2
            or gate_up.dtype is not torch.float32
            or shape[1] % 2
            or not gate_up.is_contiguous()
        ):
            raise bad_input("gate_up must be a contiguous float32 [T, 2*I]", gate_up=gate_up)
        num_rows, width = shape[0], shape[1] // 2
        if out is None:
            out = torch.empty(num_rows, width, dtype=torch.float32)
        elif (
            out.shape != (num_rows, width)
            or out.dtype is not torch.float32
            or not out.is_contiguous()
        ):
            raise bad_input(f"out must be a contiguous float32 [{num_rows}, {width}]", out=out)
        self._silu_mul(_CALL(gate_up.data_ptr(), num_rows, width, out.data_ptr()))
        return out
