"""`rms_norm` and `add_rms_norm` in C++."""

import ctypes
import struct

import torch

from quire_kernels.checks import bad_input

# the call's arguments as csrc/variant.cpp lays them out
_CALL = struct.Struct("4qd4q").pack


class CppRmsNorm:
    """The two norms of one compiled variant."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._norm = library.quire_rms_norm

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See quire_kernels.rms_norm. Rows may be further apart than H."""
        self._check(x, weight)
        num_rows, width = x.shape
        if out is None:
            out = torch.empty(num_rows, width, dtype=torch.float32)
        elif out.shape != x.shape or out.dtype is not torch.float32 or not out.is_contiguous():
            raise bad_input("out must be a contiguous float32 of x's shape", out=out, x=x)
        self._norm(
            _CALL(
                *(x.data_ptr(), x.stride()[0], 0, weight.data_ptr(), eps),
                *(num_rows, width, 0, out.data_ptr()),
            )
        )
        return out

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        in_place: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See quire_kernels.add_rms_norm."""
        self._check(x, weight)
        if (
            residual.shape != x.shape
            or residual.dtype is not torch.float32
            or not residual.is_contiguous()
        ):
            raise bad_input(
                "residual must be a contiguous float32 of x's shape", residual=residual, x=x
            )
        num_rows, width = x.shape
        if not in_place:
            out, total = torch.empty_like(residual), torch.empty_like(residual)
        elif x.is_contiguous():
            out, total = x, residual  # a row is read before it is written
        else:
            raise bad_input("x must be contiguous to be written over", x=x)
        self._norm(
            _CALL(
                *(x.data_ptr(), x.stride()[0], residual.data_ptr(), weight.data_ptr(), eps),
                *(num_rows, width, total.data_ptr(), out.data_ptr()),
            )
        )
        return out, total

    @staticmethod
    def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
        if (
            x.dim() != 2
            or x.dtype is not torch.float32
            or weight.dtype is not torch.float32
            or weight.shape != x.shape[1:]
            or x.stride()[1] != 1
            or not weight.is_contiguous()
        ):
            raise bad_input("x must be float32 [T, H] with weight float32 [H]", x=x, weight=weight)
