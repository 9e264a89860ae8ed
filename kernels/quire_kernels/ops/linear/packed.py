"""A linear layer's weight as one backend keeps it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

# How `data` is laid out:
#   dense         [N, K], any floating dtype
#   dense-int8    [N, K] int8, with `scales` [N, ceil(K/64)] bfloat16
#   panels-bf16   [ceil(N/16), K, 16] int16, bits of bf16, columns interleaved 0 8 1 9 ... 7 15
#   panels-fp16   [ceil(N/16), K, 16] int16, bits of fp16, columns in order
#   panels-fp32   [ceil(N/16), K, 16] float32, columns in order
#   panels-int8   [ceil(N/16), bytes of a panel] uint8: for each 64 of K 16 bf16 scales, columns
#                 interleaved, then [64, 16] int8 values; the last group is as long as K leaves it
WeightFormat: TypeAlias = Literal[
    "dense", "dense-int8", "panels-bf16", "panels-fp16", "panels-fp32", "panels-int8"
]
Quantization: TypeAlias = Literal["int8"]


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A weight [N, K], packed once at load. Rows beyond N in the last panel are zero."""

    shape: tuple[int, int]  # (N, K): output and input features
    format: WeightFormat
    data: torch.Tensor
    address: int = (
        0  # of `data`, and the C++ kernel's code of `format`: a call need not look them up
    )
    code: int = 0
    scales: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, padding included."""
        parts = [self.data] if self.scales is None else [self.data, self.scales]
        return sum(part.numel() * part.element_size() for part in parts)
