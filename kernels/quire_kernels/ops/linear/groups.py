"""What weights of small integers share: groups along K, their scales, what is refused, and what
becomes of the rows that they are multiplied by.
"""

import torch
import torch.nn.functional as F

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError


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


def groups(weight: torch.Tensor, size: int) -> torch.Tensor:
    """[N, K] as [N, ceil(K / size), size] float32, zeros behind the last."""
    num_rows, depth = weight.shape
    padded = F.pad(weight.detach().float(), (0, -depth % size))
    return padded.view(num_rows, -(-depth // size), size)


def check_finite(extremes: torch.Tensor, first_row: int) -> None:
    """Raises KernelInputError where a row of [N, groups] has an infinity or a NaN."""
    finite = torch.isfinite(extremes).all(dim=1)
    if not finite.all():
        raise not_finite(first_row + int(finite.int().argmin()))


def round_up(positive: torch.Tensor) -> torch.Tensor:
    """Float32 >= 0 to bfloat16, never below: rounding down would put a weight off the grid."""
    bits = positive.contiguous().view(torch.int32) + 0xFFFF
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def round_rows(x: torch.Tensor, group_size: int, bits: int) -> torch.Tensor:
    """x [T, K] as a product with grouped weights takes it: integers times a scale a row and group.

    The largest of a group becomes the largest of signed integers of `bits`; a group that has
    nothing above 1e-30 becomes zero.
    """
    parts, largest = groups(x, group_size), (1 << (bits - 1)) - 1
    most = parts.abs().amax(dim=2, keepdim=True)
    inverse = torch.where(most > 1e-30, largest / most, 0)
    rounded = (parts * inverse).round() * (most / largest)
    return rounded.flatten(1)[:, : x.shape[1]].to(x.dtype)
