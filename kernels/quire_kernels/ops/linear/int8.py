"""Int8 weights: the meaning of the format, in torch.

A row is cut into groups of 64 along K. Each has one scale, the smallest bfloat16 s >= max|w| / 127,
and the values round(w / s) in [-127, 127]. An int8 times a bfloat16 is exact in float32, so
s * value is one number everywhere, and it lies within s / 2 of w.
"""

import torch
import torch.nn.functional as F

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError

GROUP_SIZE = 64
MAX_VALUE = 127  # -128 is left out: the grid is symmetric


def check_float_matrix(weight: torch.Tensor) -> None:
    """Raises KernelInputError unless `weight` is a floating [N, K]."""
    if weight.dim() != 2 or not weight.dtype.is_floating_point:
        raise bad_input("weight must be a floating [N, K]", weight=weight)


def not_finite(row: int) -> KernelInputError:
    """The error for a weight with an infinity or a NaN in `row`."""
    return KernelInputError(
        f"weights to be quantized must be finite, got an infinity or NaN in row {row}; keep this "
        "weight in 16 bits"
    )


def quantize_int8(weight: torch.Tensor, first_row: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [N, K] int8 and scales [N, ceil(K / 64)] bfloat16 of rows [N, K] of a weight.

    `first_row` is the first one's number, for the error.

    Raises:
        KernelInputError: a weight is not finite.
    """
    check_float_matrix(weight)
    groups = _groups(weight.detach().float())
    largest = groups.abs().amax(dim=2)
    finite = torch.isfinite(largest).all(dim=1)
    if not finite.all():
        raise not_finite(first_row + int(finite.int().argmin()))
    scales = _round_up(largest / MAX_VALUE)
    divisor = scales.float()
    divisor[divisor == 0] = 1  # all weights are zero, or so near that no scale is left
    rounded = (groups / divisor[:, :, None]).round()
    return rounded.flatten(1)[:, : weight.shape[1]].to(torch.int8), scales


def dequantize_int8(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight [N, K] float32 that values and scales stand for."""
    wide = scales.float().repeat_interleave(GROUP_SIZE, dim=1)[:, : values.shape[1]]
    return values.float() * wide


def _groups(rows: torch.Tensor) -> torch.Tensor:
    """[N, K] as [N, ceil(K / 64), 64], zeros behind the last."""
    num_rows, depth = rows.shape
    num_groups = -(-depth // GROUP_SIZE)
    return F.pad(rows, (0, -depth % GROUP_SIZE)).view(num_rows, num_groups, GROUP_SIZE)


def _round_up(scales: torch.Tensor) -> torch.Tensor:
    """Float32 to bfloat16, never below: rounding down would put the largest weight off the grid."""
    bits = scales.contiguous().view(torch.int32) + 0xFFFF
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)
