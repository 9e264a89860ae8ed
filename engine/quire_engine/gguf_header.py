"""What a GGUF file says of itself, v2 and v3: metadata and the directory of its tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Neither numpy nor torch: the plan
reads the header of a file that is somewhere else, the API process the vocabulary. A vocabulary is
most of a header, and only the tokenizer wants it: arrays are passed over, and read when asked for.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.safetensors_header import ReadRange

FIRST_READ = 4 << 20  # a vocabulary of 128k tokens
MAX_HEADER_BYTES = 64 << 20  # four times that of Gemma's 256k tokens

_MAGIC = b"GGUF"
_SCALARS = {
    type_id: struct.Struct(code)
    for type_id, code in (
        *((0, "<B"), (1, "<b"), (2, "<H"), (3, "<h"), (4, "<I"), (5, "<i"), (6, "<f"), (7, "<?")),
        *((10, "<Q"), (11, "<q"), (12, "<d")),
    )
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_STRING, _ARRAY = 8, 9
_FEWEST_BYTES = 24  # magic, version and counts
_MAX_DIMENSIONS = 4
_MAX_ENTRIES = 1 << 16  # of tensors, and of metadata: the largest models have some thousands

_Buffer: TypeAlias = bytes | mmap.mmap


@dataclass(frozen=True)
class BlockType:
    """How a type stores values: `values` of them in `num_bytes` bytes."""

    type_id: int
    values: int
    num_bytes: int


BLOCK_TYPES: Mapping[str, BlockType] = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "Q4_0": BlockType(2, 32, 18),
    "Q4_1": BlockType(3, 32, 20),
    "Q8_0": BlockType(8, 32, 34),
    "Q4_K": BlockType(12, 256, 144),
    "Q6_K": BlockType(14, 256, 210),
    "BF16": BlockType(30, 1, 2),
}
_TYPE_NAMES = {block.type_id: name for name, block in BLOCK_TYPES.items()}


@dataclass(frozen=True, eq=False)
class GgufArray:
    """An array in the metadata, where it lies. Its items are read each time it is walked over."""

    data: _Buffer
    begin: int  # of the first item
    item_type: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> "Iterator[int | float | bool | str]":
        """ValueError (UnicodeDecodeError) where a text is garbled."""
        cursor = _Cursor(self.data, len(self.data), self.begin)
        for _ in range(self.count):
            yield cursor.text() if self.item_type == _STRING else cursor.scalar(self.item_type)


GgufValue: TypeAlias = int | float | bool | str | GgufArray


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. `shape` is in torch's order (outermost first)."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int  # bytes from the file's begin
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A parsed header."""

    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(read: ReadRange, size: int, file: str) -> GgufHeader:
    """The header of `file`, which has `size` bytes, of as many of its first bytes as that takes.

    Its length is known only once it is parsed, so more and more of it is read. ModelCorrupt,
    ModelUnsupported.
    """
    limit = min(size, MAX_HEADER_BYTES)
    data = read(0, min(FIRST_READ, limit))
    while True:
        try:
            return _parse(data, size, file)
        except _CutShort:
            more = read(len(data), min(2 * len(data), limit)) if len(data) < limit else b""
        if not more:
            raise _corrupt(file, f"its header does not end within {len(data):,} bytes")
        data += more


def map_gguf(path: Path) -> tuple[GgufHeader, mmap.mmap]:
    """The header of a file on disk, and the whole file, mapped. ModelMissing, ModelCorrupt,
    ModelUnsupported."""
    if not path.is_file():
        raise ModelMissing(f"a GGUF model must be a file, got {path}; fetch it there first")
    if path.stat().st_size < _FEWEST_BYTES:
        raise _corrupt(str(path), "it is shorter than a header")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _parse(data, len(data), str(path)), data


class _CutShort(Exception):
    """The file is long enough for what its header says, the part that was read is not."""


class _Cursor:
    """Reads little-endian values one after the other from the first bytes of a file of `size`.

    ValueError for what reaches beyond the file, _CutShort beyond what was read of it.
    """

    def __init__(self, data: _Buffer, size: int, at: int = 0) -> None:
        self.data = data
        self.at = at
        self._size = size

    def skip(self, num_bytes: int) -> int:
        """Where they begin."""
        begin, self.at = self.at, self.at + num_bytes
        if self.at > len(self.data):
            raise self._beyond(self.at)
        return begin

    def number(self, kind: struct.Struct) -> int | float | bool:
        (value,) = kind.unpack_from(self.data, self.skip(kind.size))
        assert isinstance(value, int | float)
        return value

    def scalar(self, type_id: int) -> int | float | bool:
        return self.number(_scalar(type_id))

    def u32(self) -> int:
        return int(self.number(_U32))

    def u64(self) -> int:
        return int(self.number(_U64))

    def text(self) -> str:
        begin = self.skip(self.u64())
        return self.data[begin : self.at].decode()

    def value(self, type_id: int) -> GgufValue:
        if type_id == _STRING:
            return self.text()
        return self.array() if type_id == _ARRAY else self.scalar(type_id)

    def array(self) -> GgufArray:
        item_type, count = self.u32(), self.u64()
        found = GgufArray(self.data, self.at, item_type, count)
        if item_type == _STRING:
            self._skip_texts(count)
        else:
            self.skip(count * _scalar(item_type).size)
        return found

    def _skip_texts(self, count: int) -> None:
        # The one loop that a vocabulary goes through: a tenth of a microsecond a token.
        at, data, length_at = self.at, self.data, _U64.unpack_from
        if count * _U64.size > self._size - at:
            raise self._beyond(self._size + 1)
        try:
            for _ in range(count):
                at += 8 + length_at(data, at)[0]
        except (struct.error, OverflowError):  # `at` is where the next one would begin
            raise self._beyond(at + 8) from None
        self.at = at
        self.skip(0)

    def _beyond(self, end: int) -> Exception:
        if end > self._size:
            return ValueError(f"it reaches to byte {end}, the file to {self._size}")
        return _CutShort()


def _scalar(type_id: int) -> struct.Struct:
    kind = _SCALARS.get(type_id)
    if kind is None:
        raise ValueError(f"metadata type {type_id} is none of GGUF's")
    return kind


def _parse(data: _Buffer, size: int, file: str) -> GgufHeader:
    """The header that `data`, the first bytes of a file of `size`, begins with. _CutShort."""
    if data[:4] != _MAGIC:
        raise ModelCorrupt(
            f"a GGUF file must begin with {_MAGIC!r}, got {data[:4]!r} in {file}; fetch the model "
            "again, or name another file"
        )
    try:
        return _parsed(_Cursor(data, size, len(_MAGIC)), size, file)
    except ValueError as error:  # of UnicodeDecodeError too
        raise _corrupt(file, f"its header ends early or is garbled ({error})") from error


def _parsed(cursor: _Cursor, size: int, file: str) -> GgufHeader:
    version = cursor.u32()
    if version not in (2, 3):
        raise ModelUnsupported(
            f"a GGUF's version must be 2 or 3, got {version} in {file}; convert it"
        )
    num_tensors, num_values = cursor.u64(), cursor.u64()
    if max(num_tensors, num_values) > _MAX_ENTRIES:
        raise ValueError(f"{num_tensors} tensors, {num_values} values of metadata")
    metadata = {cursor.text(): cursor.value(cursor.u32()) for _ in range(num_values)}
    directory = [_entry(cursor, file) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    begin = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, type_name, offset in directory:
        num_bytes = _stored_bytes(name, shape, BLOCK_TYPES[type_name])
        placed = GgufTensor(name, shape, type_name, begin + offset, num_bytes)
        if placed.offset + num_bytes > size:
            raise _corrupt(
                file, f"{name} ends at byte {placed.offset + num_bytes}, the file at {size}"
            )
        tensors[name] = placed
    return GgufHeader(metadata, tensors)


def _entry(cursor: _Cursor, file: str) -> tuple[str, tuple[int, ...], str, int]:
    """One entry of the directory: name, shape, type, and the offset in the data section."""
    name = cursor.text()
    num_dimensions = cursor.u32()
    if num_dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has {num_dimensions} dimensions")
    shape = tuple(reversed([cursor.u64() for _ in range(num_dimensions)]))
    type_id, offset = cursor.u32(), cursor.u64()
    type_name = _TYPE_NAMES.get(type_id)
    if type_name is None:
        raise ModelUnsupported(
            f"a GGUF tensor's type must be one of {', '.join(BLOCK_TYPES)}, got type {type_id} for "
            f"{name} in {file}; choose another quantization of this model"
        )
    return name, shape, type_name, offset


def _stored_bytes(name: str, shape: tuple[int, ...], block: BlockType) -> int:
    """Bytes of a tensor; each row is made of whole blocks."""
    if shape and shape[-1] % block.values:
        raise ValueError(f"{name} has rows of {shape[-1]} values, in blocks of {block.values}")
    return math.prod(shape) // block.values * block.num_bytes


def _corrupt(file: str, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"a GGUF file must be whole, got {file}: {what}; fetch the model again")
