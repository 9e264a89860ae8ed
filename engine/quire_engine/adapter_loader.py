"""A LoRA adapter's folder into packed matrices, and the hash of what it holds."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import quire_kernels as kernels
from quire_engine.adapters import (
    CONFIG,
    LINEARS,
    WEIGHTS,
    AdapterFacts,
    Half,
    LinearName,
    tensor_name,
)
from quire_engine.errors import ModelCorrupt
from quire_engine.fetch.headers import read_local_adapter
from quire_engine.loader import LoadedModel
from quire_engine.models.config import ModelConfig
from quire_engine.models.lora import Adapter, LayerAdapter, LoraLinear, LoraPart

ReadHalf = Callable[[str, Half], Tensor]


def load_adapter(
    folder: Path,
    model: LoadedModel,
    weight_dtype: torch.dtype | None,
    on_tensor: Callable[[], None] = lambda: None,
) -> Adapter:
    """Read, check and pack the adapter in `folder` for `model`.

    `weight_dtype` is what its matrices are converted to; None keeps their own. Raises ModelMissing,
    ModelCorrupt or ModelUnsupported.
    """
    config = model.decoder.config
    facts = read_local_adapter(folder, config)
    path = folder / WEIGHTS

    def read(file: safe_open, layer: int, part: str, half: Half) -> Tensor:
        tensor: Tensor = file.get_tensor(  # type: ignore[no-untyped-call]
            tensor_name(layer, part, half)
        )
        on_tensor()
        return tensor.to(model.device, weight_dtype or tensor.dtype)

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            layers = tuple(
                _layer(facts, config, number, partial(read, file, number))
                for number in range(config.num_layers)
            )
    except SafetensorError as error:
        raise ModelCorrupt(
            f"an adapter's file must be whole, got {path}: {error}; fetch it again"
        ) from error
    return Adapter(layers, content_hash(folder))


def content_hash(folder: Path) -> bytes:
    """32 bytes that stand for what the adapter's files say, wherever they lie."""
    whole = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.digest()


def _layer(facts: AdapterFacts, model: ModelConfig, number: int, read: ReadHalf) -> LayerAdapter:
    def linear(name: LinearName) -> LoraLinear | None:
        paths = facts.parts(number, name)
        return _linear(facts, _columns(model, name), paths, read) if paths else None

    return LayerAdapter(linear("qkv"), linear("output"), linear("gate_up"), linear("down"))


def _linear(
    facts: AdapterFacts, columns: dict[str, slice], paths: tuple[str, ...], read: ReadHalf
) -> LoraLinear:
    down = torch.cat([read(path, "A") for path in paths])
    parts = tuple(
        LoraPart(
            columns[path],
            slice(index * facts.rank, (index + 1) * facts.rank),
            kernels.pack_linear(read(path, "B")),
        )
        for index, path in enumerate(paths)
    )
    return LoraLinear(kernels.pack_linear(down), parts, facts.scale)


def _columns(model: ModelConfig, name: LinearName) -> dict[str, slice]:
    """Which columns of a product each of its parts gives, one after the other."""
    query, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    inner, hidden = model.intermediate_size, model.hidden_size
    widths: dict[LinearName, tuple[int, ...]] = {
        "qkv": (query, kv, kv),
        "output": (hidden,),
        "gate_up": (inner, inner),
        "down": (hidden,),
    }
    columns, begin = {}, 0
    for path, width in zip(LINEARS[name], widths[name], strict=True):
        columns[path] = slice(begin, begin + width)
        begin += width
    return columns
