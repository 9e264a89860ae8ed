"""Where weights come from: a safetensors folder, a GGUF file, or a random generator.

All of them give tensors by their Hugging Face names. Files are held against their own headers
before a byte is used, so that a half-written or cut file is ModelCorrupt and not a strange answer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire_engine.errors import ModelCorrupt
from quire_engine.gguf import GgufFile
from quire_engine.gguf_names import hugging_face_name
from quire_engine.safetensors_header import whole_file_header
from quire_engine.shards import shards_of, tensors_in


class WeightSource(Protocol):
    """Tensors by their Hugging Face names."""

    @property
    def names(self) -> frozenset[str]:
        """All tensors that are there."""

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the dtype it is stored in (quantized GGUF: bfloat16)."""


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

    def read(self, name: str) -> Tensor:
        path = self._files[name]
        try:
            tensor: Tensor = self._open[path].get_tensor(name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise _corrupt(path, str(error)) from error
        return tensor


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
        self._gguf_name_of = {hugging_face_name(name): name for name in file.tensors}
        # llama.cpp's converter interleaves the halves of each head's rows for this architecture.
        self._interleaved = file.metadata.get("general.architecture") == "llama"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._gguf_name_of)

    def read(self, name: str) -> Tensor:
        gguf_name = self._gguf_name_of[name]
        type_name = self._file.tensors[gguf_name].type_name
        tensor = torch.from_numpy(self._file.read(gguf_name).copy())
        if type_name != "F32":
            tensor = tensor.to(torch.float16 if type_name == "F16" else torch.bfloat16)
        if self._interleaved and ".q_proj." in name:
            return _halves(tensor, self._heads("attention.head_count"))
        if self._interleaved and ".k_proj." in name:
            return _halves(tensor, self._heads("attention.head_count_kv"))
        return tensor

    def _heads(self, key: str) -> int:
        metadata = self._file.metadata
        value = metadata.get(f"llama.{key}", metadata["llama.attention.head_count"])
        assert isinstance(value, int)
        return value


def _halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from interleaved pairs (GGUF's llama) to two halves (Hugging Face's)."""
    rows = tensor.view(num_heads, tensor.shape[0] // num_heads // 2, 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


class RandomSource:
    """Random bfloat16 weights of given shapes, the same ones for the same seed."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes = shapes
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.randn(shape, generator=self._generator).mul_(0.02).to(torch.bfloat16)


def _corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"a model's file must be whole, got {path}: {what}; fetch the model again")
