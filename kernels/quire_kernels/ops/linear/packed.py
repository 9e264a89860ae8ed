"""A linear layer's weight: as it is read, and as one backend keeps it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from quire_kernels.checks import bad_input

# How `data` is laid out:
#   dense         [N, K], any floating dtype
#   dense-int8    [N, K] int8, with `scales` [N, ceil(K/64)] bfloat16
#   dense-int4    [N, K] uint8, with `scales` and `minimums` [N, ceil(K/32)] bfloat16
#   dense-gguf    [N, bytes of a row] uint8, blocks of `gguf_type`
#   panels-bf16   [ceil(N/16), K, 16] int16, bits of bf16, columns interleaved 0 8 1 9 ... 7 15
#   panels-fp16   [ceil(N/16), K, 16] int16, bits of fp16, columns in order
#   panels-fp32   [ceil(N/16), K, 16] float32, columns in order
#   panels-int8   [ceil(N/16), bytes of a panel] uint8: for each 64 of K 16 bf16 scales, columns
#                 interleaved, then [32, 16, 2] int8 values, two of k side by side; the last group
#                 is as long as K leaves it
#   panels-int4   likewise, for each 32 of K: scales, minimums, [8, 8, 4] bytes of two columns each
#   panels-q4 ... the same with GGUF's own scales, see ops/linear/grouped.h
WeightFormat: TypeAlias = Literal[
    "dense",
    "dense-int8",
    "dense-int4",
    "dense-gguf",
    "panels-bf16",
    "panels-fp16",
    "panels-fp32",
    "panels-int8",
    "panels-int4",
    "panels-q4",
    "panels-q8",
    "panels-q4_k",
    "panels-q6_k",
]
Quantization: TypeAlias = Literal["int8", "int4"]
GgufType: TypeAlias = Literal["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"]

PANEL_ROWS = 16
VALUES_AT_ONCE = 1 << 18  # of a weight that is packed: 1 MiB in float32


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
    minimums: torch.Tensor | None = None
    gguf_type: GgufType | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, padding included."""
        parts = (self.data, self.scales, self.minimums)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


@dataclass(frozen=True)
class WeightRows:
    """A weight [N, K] that is read some rows at a time, so that packing it takes little memory
    beside what it becomes."""

    shape: tuple[int, int]
    dtype: torch.dtype  # of the rows, floating
    device: torch.device  # where they are, and where the packed weight will be
    read: Callable[[int, int], torch.Tensor]  # rows [begin, end); the same may be asked for twice

    @staticmethod
    def of(weight: "torch.Tensor | WeightRows") -> "WeightRows":
        """The rows of a weight that is there already. KernelInputError unless it is a matrix."""
        if isinstance(weight, WeightRows):
            return weight
        if weight.dim() != 2 or not weight.dtype.is_floating_point:
            raise bad_input("weight must be a floating [N, K]", weight=weight)
        whole = weight.detach()
        num_rows, depth = whole.shape
        return WeightRows(
            (num_rows, depth), whole.dtype, whole.device, lambda begin, end: whole[begin:end]
        )

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order, whole panels of them at a time: the first one's number, and they."""
        for begin, end in row_chunks(self.shape):
            yield begin, self.read(begin, end)


@dataclass(frozen=True)
class GgufRows:
    """A weight [N, K] in GGUF's blocks, read some rows at a time."""

    shape: tuple[int, int]
    gguf_type: GgufType
    read: Callable[[int, int], torch.Tensor]  # rows [begin, end) as uint8 [rows, bytes of a row]


def row_chunks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of all rows of [N, K] in order, whole panels of them at a time."""
    num_rows, depth = shape
    panels = max(1, VALUES_AT_ONCE // (PANEL_ROWS * max(1, depth)))
    for begin in range(0, num_rows, panels * PANEL_ROWS):
        yield begin, min(begin + panels * PANEL_ROWS, num_rows)
