"""Int4 weights: the meaning of the format, in torch.

A row is cut into groups of 32 along K; the last one may be shorter. Each has a minimum m, the
largest bfloat16 that is no more than its least weight, and a scale s, the smallest bfloat16 that is
no less than (max w - m) / 15; the values are round((w - m) / s) in [0, 15]. s * value + m, rounded
once in float32, lies within s / 2 of w.
"""

import torch

from quire_kernels.ops.linear.groups import check_finite, check_float_matrix, groups, round_up

GROUP_SIZE = 32
ROUNDING = (GROUP_SIZE, 8)  # of x before a product, and to how many bits
MAX_VALUE = 15


def quantize_int4(
    weight: torch.Tensor, first_row: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values [N, K] uint8, scales and minimums [N, ceil(K / 32)] bfloat16 of rows [N, K] of a
    weight.

    `first_row` is the first one's number, for the error.

    Raises:
        KernelInputError: a weight is not finite.
    """
    check_float_matrix(weight)
    depth = weight.shape[1]
    parts, lacking = groups(weight, GROUP_SIZE), -depth % GROUP_SIZE
    if lacking:  # what pads the last group must widen no range
        parts[:, -1, -lacking:] = parts[:, -1, :1]
    least, most = parts.amin(dim=2), parts.amax(dim=2)
    check_finite(least - least + most - most, first_row)
    minimums = _round_down(least)
    low = minimums.float()
    # divided first, as the difference of the largest weights is infinite
    scales = round_up(most / MAX_VALUE - low / MAX_VALUE)
    divisor = scales.float()
    divisor[divisor == 0] = 1
    steps = ((parts - low[:, :, None]) / divisor[:, :, None]).round().clamp(max=MAX_VALUE)
    return steps.flatten(1)[:, :depth].to(torch.uint8), scales, minimums


def dequantize_int4(
    values: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor
) -> torch.Tensor:
    """The weight [N, K] float32 that values, scales and minimums stand for."""
    depth = values.shape[1]
    wide, low = (
        part.float().repeat_interleave(GROUP_SIZE, dim=1)[:, :depth] for part in (scales, minimums)
    )
    return values.float() * wide + low


def _round_down(numbers: torch.Tensor) -> torch.Tensor:
    """Finite float32 to bfloat16, never above; the lowest bfloat16 where none is low enough."""
    bits = numbers.contiguous().view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    away = ((magnitude + 0xFFFF) >> 16).clamp(max=0x7F7F)
    negative = bits < 0
    high = torch.where(negative, away - 0x8000, magnitude >> 16)
    return high.to(torch.int16).view(torch.bfloat16)
