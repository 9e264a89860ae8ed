"""GGUF's blocks of small integers: the meaning of each type, in torch.

Formats: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml. A row of a weight is
blocks one after the other, little-endian.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.ops.linear.packed import GgufType


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The fp16 number at byte `at` of each block, as a column."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """Low halves of the last dimension's bytes, then the high ones."""
    return torch.cat((data & 15, data >> 4), dim=-1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """256 values: d, dmin, 8 six-bit scales and minimums in 12 bytes, 128 bytes of nibbles."""
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((low & 63, (mixed & 15) | (low >> 6 << 4)), dim=1)
    minimums = torch.cat((high & 63, (mixed >> 4) | (high >> 6 << 4)), dim=1)
    values = _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32)
    scale = (_half(blocks, 0) * scales.float())[:, :, None]
    minimum = (_half(blocks, 2) * minimums.float())[:, :, None]
    return scale * values.float() - minimum


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """256 values: 128 bytes of low nibbles, 64 of two high bits, 16 signed scales, d."""
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    high = (blocks[:, 128:192].view(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high << 4)).view(-1, 16, 16).float() - 32
    return values * (_half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float())[:, :, None]


@dataclass(frozen=True)
class GgufBlocks:
    """GGUF's number of a type, the values and bytes of its blocks, the values that share a scale,
    the bits that x is rounded to for a product, and what they mean."""

    number: int
    num_values: int
    num_bytes: int
    group_size: int
    x_bits: int
    dequantize: Callable[[torch.Tensor], torch.Tensor]

    def row_bytes(self, depth: int) -> int:
        """Bytes of a row of `depth` values, whole blocks."""
        return depth // self.num_values * self.num_bytes


BLOCKS: dict[GgufType, GgufBlocks] = {
    "Q4_0": GgufBlocks(2, 32, 18, 32, 8, _q4_0),
    "Q4_1": GgufBlocks(3, 32, 20, 32, 8, _q4_1),
    "Q8_0": GgufBlocks(8, 32, 34, 32, 16, _q8_0),
    "Q4_K": GgufBlocks(12, 256, 144, 32, 8, _q4_k),
    "Q6_K": GgufBlocks(14, 256, 210, 16, 16, _q6_k),
}


def check_rows(blocks: torch.Tensor, gguf_type: GgufType, depth: int) -> None:
    """Raises KernelInputError unless `blocks` are rows of `depth` values."""
    stored = BLOCKS[gguf_type]
    if depth % stored.num_values:
        raise KernelInputError(
            f"a row of {gguf_type} must be a multiple of {stored.num_values} values, got {depth}"
        )
    row_bytes = stored.row_bytes(depth)
    if blocks.dtype is not torch.uint8 or blocks.dim() != 2 or blocks.shape[1] != row_bytes:
        raise bad_input(f"blocks must be uint8 [rows, {row_bytes}]", blocks=blocks)


def dequantize(blocks: torch.Tensor, gguf_type: GgufType, depth: int) -> torch.Tensor:
    """The rows [N, depth] float32 that `blocks` uint8 [N, bytes of a row] stand for.

    Raises:
        KernelInputError: the blocks are no such rows.
    """
    check_rows(blocks, gguf_type, depth)
    stored = BLOCKS[gguf_type]
    return stored.dequantize(blocks.reshape(-1, stored.num_bytes)).view(len(blocks), depth)
