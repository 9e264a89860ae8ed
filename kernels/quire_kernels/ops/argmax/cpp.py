"""`argmax` in C++."""

import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.library import Library

# the call's arguments as csrc/variant.cpp lays them out
_CALL = struct.Struct("5q").pack


class CppArgmax:
    """The greedy choice of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._argmax = library.function("quire_argmax")

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """See quire_kernels.argmax."""
        if x.dim() != 2 or x.dtype is not torch.float32 or x.stride(1) != 1 or x.shape[1] == 0:
            raise bad_input("x must be float32 [T, N], N >= 1, with unit stride", x=x)
        out = torch.empty(x.shape[0], dtype=torch.int64)
        self._argmax(_CALL(x.data_ptr(), x.stride(0), x.shape[0], x.shape[1], out.data_ptr()))
        return out
