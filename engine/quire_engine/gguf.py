"""A small reader of GGUF v2 and v3: metadata, tensor directory, and dequantization. numpy only.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks: ggml-common.h there.
The API process reads the vocabulary from `metadata` (keys tokenizer.ggml.*), so no torch here.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
GgufValue = int | float | bool | str | list["GgufValue"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
            10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. `shape` is in torch's order (outermost first)."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int  # bytes from the file's begin
    num_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A whole file, mapped. Open it with `GgufFile.open`."""

    path: Path
    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, GgufTensor]
    data: mmap.mmap

    @staticmethod
    def open(path: Path) -> "GgufFile":
        """Read the header of `path`. ModelMissing, ModelCorrupt, ModelUnsupported."""
        if not path.is_file():
            raise ModelMissing(f"a GGUF model must be a file, got {path}; fetch it there first")
        if path.stat().st_size < 24:
            raise _corrupt(path, "it is shorter than a header")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return _parse(path, data)
        except (struct.error, UnicodeDecodeError, ValueError, IndexError, OverflowError) as error:
            raise _corrupt(path, f"its header ends early or is garbled ({error})") from error

    def raw(self, name: str) -> Bytes:
        """The bytes of tensor `name`, unchanged and not copied."""
        tensor = self.tensors[name]
        return np.frombuffer(self.data, np.uint8, tensor.num_bytes, tensor.offset)

    def read(self, name: str) -> Floats:
        """Tensor `name` as float32 in its shape."""
        tensor = self.tensors[name]
        values = BLOCK_TYPES[tensor.type_name].dequantize(self.raw(name))
        return values.reshape(tensor.shape)


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        assert isinstance(value, int | float)
        return value

    def integer(self, code: str) -> int:
        return int(self.scalar(code))

    def text(self) -> str:
        length = self.integer("<Q")
        if length > len(self.data) - self.at:
            raise ValueError(f"a text of {length} bytes reaches beyond the file's end")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, type_id: int) -> GgufValue:
        if type_id == _STRING:
            return self.text()
        if type_id != _ARRAY:
            if type_id not in _SCALARS:
                raise ValueError(f"metadata type {type_id} is none of GGUF's")
            return self.scalar(_SCALARS[type_id])
        item_type, count = self.integer("<I"), self.integer("<Q")
        if count > len(self.data) - self.at:
            raise ValueError(f"an array of {count} values reaches beyond the file's end")
        return [self.value(item_type) for _ in range(count)]


def _parse(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(data)
    if data[:4] != b"GGUF":
        raise _corrupt(path, f"it begins with {data[:4]!r} in place of b'GGUF'")
    cursor.at = 4
    version = cursor.integer("<I")
    if version not in (2, 3):
        raise ModelUnsupported(
            f"a GGUF's version must be 2 or 3, got {version} in {path}; convert it"
        )
    num_tensors, num_values = cursor.integer("<Q"), cursor.integer("<Q")
    metadata = {cursor.text(): cursor.value(cursor.integer("<I")) for _ in range(num_values)}
    directory = [_entry(cursor, path) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    begin = -(-cursor.at // alignment) * alignment
    tensors = {}
    for tensor in directory:
        placed = GgufTensor(tensor.name, tensor.shape, tensor.type_name, begin + tensor.offset,
                            tensor.num_bytes)  # fmt: skip
        if placed.offset + placed.num_bytes > len(data):
            raise _corrupt(path, f"{tensor.name} ends at byte {placed.offset + placed.num_bytes}, "
                                 f"the file at {len(data)}")  # fmt: skip
        tensors[tensor.name] = placed
    return GgufFile(path, metadata, tensors, data)


def _entry(cursor: _Cursor, path: Path) -> GgufTensor:
    """One entry of the tensor directory, its offset still relative to the data section."""
    name = cursor.text()
    num_dimensions = cursor.integer("<I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has {num_dimensions} dimensions")
    shape = tuple(reversed([cursor.integer("<Q") for _ in range(num_dimensions)]))
    type_id, offset = cursor.integer("<I"), cursor.integer("<Q")
    type_name = _TYPE_NAMES.get(type_id)
    if type_name is None:
        raise ModelUnsupported(
            f"a GGUF tensor's type must be one of {', '.join(BLOCK_TYPES)}, got type {type_id} for "
            f"{name} in {path}; choose another quantization of this model"
        )
    block = BLOCK_TYPES[type_name]
    num_values = int(np.prod(shape, dtype=np.int64))
    return GgufTensor(name, shape, type_name, offset, num_values // block.values * block.num_bytes)


def _corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"a GGUF file must be whole, got {path}: {what}; fetch the model again")


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


@dataclass(frozen=True)
class BlockType:
    """How a type stores values: `values` of them in `num_bytes` bytes."""

    type_id: int
    values: int
    num_bytes: int
    dequantize: Callable[[Bytes], Floats]


BLOCK_TYPES: Mapping[str, BlockType] = {
    "F32": BlockType(0, 1, 4, _f32),
    "F16": BlockType(1, 1, 2, _f16),
    "Q4_0": BlockType(2, 32, 18, _q4_0),
    "Q4_1": BlockType(3, 32, 20, _q4_1),
    "Q8_0": BlockType(8, 32, 34, _q8_0),
    "Q4_K": BlockType(12, 256, 144, _q4_k),
    "Q6_K": BlockType(14, 256, 210, _q6_k),
    "BF16": BlockType(30, 1, 2, _bf16),
}
_TYPE_NAMES = {block.type_id: name for name, block in BLOCK_TYPES.items()}
