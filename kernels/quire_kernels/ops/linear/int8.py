"""Int8 weights: the meaning of the format, in torch.

A row is cut into groups of 64 along K. Each has one scale, the smallest bfloat16 s >= max|w| / 127,
and the values round(w / s) in [-127, 127]. An int8 times a bfloat16 is exact in float32, so
s * value is one number everywhere, and it lies within s / 2 of w.
"""

import torch

from quire_kernels.ops.linear.groups import check_finite, check_float_matrix, groups, round_up

GROUP_SIZE = 64
ROUNDING = (GROUP_SIZE, 16)  # of x before a product, and to how many bits
MAX_VALUE = 127  # -128 is left out: the grid is symmetric


def quantize_int8(weight: torch.Tensor, first_row: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [N, K] int8 and scales [N, ceil(K / 64)] bfloat16 of rows [N, K] of a weight.

    `first_row` is the first one's number, for the error.

    Raises:
        KernelInputError: a weight is not finite.
    """
    check_float_matrix(weight)
    parts = groups(weight, GROUP_SIZE)
    largest = parts.abs().amax(dim=2)
    check_finite(largest, first_row)
    scales = round_up(largest / MAX_VALUE)
    divisor = scales.float()
    divisor[divisor == 0] = 1  # all weights are zero, or so near that no scale is left
    rounded = (parts / divisor[:, :, None]).round()
    return rounded.flatten(1)[:, : weight.shape[1]].to(torch.int8), scales


def dequantize_int8(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight [N, K] float32 that values and scales stand for."""
    wide = scales.float().repeat_interleave(GROUP_SIZE, dim=1)[:, : values.shape[1]]
    return values.float() * wide
