"""Where weights come from: a safetensors folder, a GGUF file, or a random generator.

All of them give tensors by their Hugging Face names. Files are held against their own headers
before a byte is used, so that a half-written or cut file is ModelCorrupt and not a strange answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

import quire_kernels as kernels
from quire_engine.errors import ModelCorrupt
from quire_engine.gguf import Floats, GgufFile
from quire_engine.gguf_header import GgufTensor
from quire_engine.gguf_names import hugging_face_name
from quire_engine.safetensors_header import whole_file_header
from quire_engine.shards import shards_of, tensors_in

_PACKED_TYPES: dict[str, kernels.GgufType] = {name: name for name in get_args(kernels.GgufType)}
_FLOATS = {"F32": torch.float32, "F16": torch.float16}  # of a GGUF; all else becomes bfloat16


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read some rows at a time. `rows(begin, end)` are on the CPU."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    blocks: kernels.GgufRows | None = None
    """The same matrix as a GGUF has it, where the kernels take it so."""

    def whole(self) -> Tensor:
        """All of it: for vectors."""
        return self.rows(0, self.shape[0])


class WeightSource(Protocol):
    """Tensors by their Hugging Face names."""

    @property
    def names(self) -> frozenset[str]:
        """All tensors that are there."""

    def tensor(self, name: str) -> StoredTensor:
        """One of them, in the dtype it is stored in (quantized GGUF: bfloat16)."""


class SafetensorsSource:
    """The shards of a folder."""

    def __init__(self, model_dir: Path) -> None:
        self._files = _files_by_tensor(model_dir)
        self._open = {
            path: safe_open(path, framework="pt", device="cpu")
            for path in set(self._files.values())
        }

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def tensor(self, name: str) -> StoredTensor:
        path = self._files[name]
        try:  # the file's own pages, mapped: no memory until they are read, and then the cache's
            mapped: Tensor = self._open[path].get_tensor(name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise _corrupt(path, str(error)) from error
        return StoredTensor(tuple(mapped.shape), mapped.dtype, lambda begin, end: mapped[begin:end])


def _files_by_tensor(model_dir: Path) -> dict[str, Path]:
    """Which file holds each tensor: every shard's own, verified header, held against the index."""
    files: dict[str, Path] = {}
    for name, promised in shards_of(model_dir).items():
        path = model_dir / name
        header = whole_file_header(path)
        files |= dict.fromkeys(tensors_in(str(path), header.tensors, promised), path)
    return files


class GgufSource:
    """A GGUF file's tensors.

    Quantized ones are widened to float32 and rounded to bfloat16, as the checkpoints that
    transformers converts from GGUF are: 8 bits of mantissa carry what 4-bit blocks do.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._metadata = file.header.metadata
        self._gguf_name_of = {hugging_face_name(name): name for name in file.header.tensors}
        # llama.cpp's converter interleaves the halves of each head's rows for this architecture.
        self._interleaved = self._metadata.get("general.architecture") == "llama"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._gguf_name_of)

    def tensor(self, name: str) -> StoredTensor:
        gguf_name = self._gguf_name_of[name]
        entry = self._file.header.tensors[gguf_name]
        dtype = _FLOATS.get(entry.type_name, torch.bfloat16)
        order = self._order(name, entry.shape[0])
        if len(entry.shape) == 1:
            values = self._file.read(gguf_name)
            vector = _tensor(values if order is None else values[order]).to(dtype)
            return StoredTensor(entry.shape, dtype, lambda begin, end: vector[begin:end])
        stored = self._file.raw(gguf_name)

        def rows(begin: int, end: int) -> Tensor:
            picked = stored[begin:end] if order is None else stored[order[begin:end]]
            return _tensor(self._file.widen(gguf_name, picked)).to(dtype)

        return StoredTensor(entry.shape, dtype, rows, self._blocks(name, entry))

    def _blocks(self, name: str, entry: GgufTensor) -> kernels.GgufRows | None:
        gguf_type = _PACKED_TYPES.get(entry.type_name)
        if gguf_type is None:
            return None
        num_rows, depth = entry.shape
        order, stored = self._order(name, num_rows), self._file.raw(entry.name)

        def read(begin: int, end: int) -> Tensor:
            picked = stored[begin:end] if order is None else stored[order[begin:end]]
            return torch.from_numpy(np.require(picked, requirements="W"))

        return kernels.GgufRows((num_rows, depth), gguf_type, read)

    def _order(self, name: str, num_rows: int) -> NDArray[np.int64] | None:
        """Where the rows of a tensor stand in the file; None for as they are."""
        if self._interleaved and ".q_proj." in name:
            return _halves(num_rows, self._heads("attention.head_count"))
        if self._interleaved and ".k_proj." in name:
            return _halves(num_rows, self._heads("attention.head_count_kv"))
        return None

    def _heads(self, key: str) -> int:
        value = self._metadata.get(f"llama.{key}", self._metadata["llama.attention.head_count"])
        assert isinstance(value, int)
        return value


def _halves(num_rows: int, num_heads: int) -> NDArray[np.int64]:
    """Interleaved pairs of a head's rows (GGUF's llama), in the order of two halves (Hugging
    Face's)."""
    pairs = np.arange(num_rows).reshape(num_heads, -1, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def _tensor(values: Floats) -> Tensor:
    """Torch wants memory that may be written: values that lie in the file itself are copied."""
    return torch.from_numpy(np.require(values, requirements="W"))


class RandomSource:
    """Random bfloat16 weights of given shapes, the same ones for the same seed."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes = shapes
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def tensor(self, name: str) -> StoredTensor:
        shape = self._shapes[name]

        def rows(begin: int, end: int) -> Tensor:
            part = (end - begin, *shape[1:])
            if name.endswith("norm.weight"):
                return torch.ones(part, dtype=torch.bfloat16)
            return torch.randn(part, generator=self._generator).mul_(0.02).to(torch.bfloat16)

        return StoredTensor(shape, torch.bfloat16, rows)


def _corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"a model's file must be whole, got {path}: {what}; fetch the model again")
