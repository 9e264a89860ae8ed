"""A GGUF file's tensors, widened to float32 some rows at a time. numpy only.

Blocks: ggml-common.h of https://github.com/ggml-org/ggml. gguf_header.py says where they lie.
"""

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quire_engine.gguf_header import GgufHeader, map_gguf

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class GgufFile:
    """A whole file, mapped. Open it with `GgufFile.open`."""

    header: GgufHeader
    data: mmap.mmap

    @staticmethod
    def open(path: Path) -> "GgufFile":
        """Read the header of `path`. ModelMissing, ModelCorrupt, ModelUnsupported."""
        return GgufFile(*map_gguf(path))

    def raw(self, name: str) -> Bytes:
        """The bytes of tensor `name`, unchanged and not copied, one of its rows a row."""
        tensor = self.header.tensors[name]
        whole = np.frombuffer(self.data, np.uint8, tensor.num_bytes, tensor.offset)
        return whole.reshape(math.prod(tensor.shape[:-1]), -1)

    def widen(self, name: str, rows: Bytes) -> Floats:
        """Some rows of `raw(name)` as float32. On the way there a value takes up to 14 bytes."""
        return DEQUANTIZE[self.header.tensors[name].type_name](rows).reshape(len(rows), -1)

    def read(self, name: str) -> Floats:
        """Tensor `name` as float32 in its shape."""
        return self.widen(name, self.raw(name)).reshape(self.header.tensors[name].shape)


# ---- block formats ------------------------------------------------------------------------------


def _half(blocks: Bytes, at: int) -> Floats:
    """The fp16 number at byte `at` of each block, as a column."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(blocks: Bytes) -> NDArray[np.uint8]:
    """Low halves of all bytes of a block, then the high ones."""
    return np.concatenate((blocks & 15, blocks >> 4), axis=1)


def _f32(raw: Bytes) -> Floats:
    return raw.view(np.float32)


def _f16(raw: Bytes) -> Floats:
    return raw.view(np.float16).astype(np.float32)


def _bf16(raw: Bytes) -> Floats:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(raw: Bytes) -> Floats:
    blocks = raw.reshape(-1, 18)
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(raw: Bytes) -> Floats:
    blocks = raw.reshape(-1, 20)
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(raw: Bytes) -> Floats:
    blocks = raw.reshape(-1, 34)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_k(raw: Bytes) -> Floats:
    """256 values: d, dmin, 8 six-bit scales and minimums in 12 bytes, 128 bytes of nibbles."""
    blocks = raw.reshape(-1, 144)
    packed = blocks[:, 4:16]
    scales = np.concatenate(
        (packed[:, :4] & 63, (packed[:, 8:12] & 15) | (packed[:, :4] >> 6 << 4)), axis=1
    )
    minimums = np.concatenate(
        (packed[:, 4:8] & 63, (packed[:, 8:12] >> 4) | (packed[:, 4:8] >> 6 << 4)), axis=1
    )
    pairs = blocks[:, 16:].reshape(-1, 4, 1, 32)  # low halves 32 values, high halves the next 32
    values = np.concatenate((pairs & 15, pairs >> 4), axis=2).reshape(-1, 8, 32)
    factor = _half(blocks, 0) * scales.astype(np.float32)
    offset = _half(blocks, 2) * minimums.astype(np.float32)
    return factor[:, :, None] * values.astype(np.float32) - offset[:, :, None]


def _q6_k(raw: Bytes) -> Floats:
    """256 values: 128 bytes of low nibbles, 64 of two high bits, 16 signed scales, d."""
    blocks = raw.reshape(-1, 210)
    nibbles = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate((nibbles & 15, nibbles >> 4), axis=2).reshape(-1, 8, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = ((pairs >> shifts) & 3).astype(np.uint8).reshape(-1, 8, 32)
    values = (low | (high << 4)).astype(np.float32) - 32
    scales: Floats = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    weights: Floats = values.reshape(-1, 16, 16) * scales[:, :, None]
    return weights


DEQUANTIZE: Mapping[str, Callable[[Bytes], Floats]] = {
    "F32": _f32,
    "F16": _f16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
    "BF16": _bf16,
}
