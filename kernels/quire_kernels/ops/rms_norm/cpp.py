"""`rms_norm` and `add_rms_norm` in C++."""

import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.library import Library

# the call's arguments as csrc/variant.cpp lays them out
_CALL = struct.Struct("4qd6q").pack


class CppRmsNorm:
    """The two norms of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._norm = library.function("quire_rms_norm")

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See quire_kernels.rms_norm."""
        self._check(x, weight)
        shape, width = x.shape, x.shape[-1]
        if out is None:
            out = torch.empty(shape, dtype=torch.float32)
        elif out.shape != shape or out.dtype is not torch.float32 or not _heads_lie_together(out):
            raise bad_input("out must be a float32 of x's shape, heads together", out=out, x=x)
        num_heads = shape[1] if len(shape) == 3 else 1
        self._norm(
            _CALL(
                *(x.data_ptr(), x.stride()[0], 0, weight.data_ptr(), eps),
                *(shape[0], num_heads, width, 0, out.data_ptr(), out.stride()[0]),
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
            x.dim() != 2
            or residual.shape != x.shape
            or residual.dtype is not torch.float32
            or not residual.is_contiguous()
        ):
            raise bad_input(
                "residual must be a contiguous float32 of x's shape [T, H]", residual=residual, x=x
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
                *(num_rows, 1, width, total.data_ptr(), out.data_ptr(), width),
            )
        )
        return out, total

    @staticmethod
    def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
        if (
            x.dim() not in (2, 3)
            or x.dtype is not torch.float32
            or weight.dtype is not torch.float32
            or weight.shape != x.shape[-1:]
            or not _heads_lie_together(x)
            or not weight.is_contiguous()
        ):
            raise bad_input(
                "x must be float32 [T, H] or [T, heads, H] with weight float32 [H]",
                x=x,
                weight=weight,
            )


def _heads_lie_together(x: torch.Tensor) -> bool:
    """Whether all but the first dimension of x is contiguous."""
    strides = x.stride()
    return strides[-1] == 1 and (len(strides) == 2 or strides[1] == x.shape[2])
