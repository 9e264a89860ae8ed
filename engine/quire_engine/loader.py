"""A model's files into a packed Decoder: fused QKV and gate-up, names and shapes checked."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

import quire_kernels as kernels
from quire_engine.config import EngineConfig, Quantization
from quire_engine.errors import ModelUnsupported
from quire_engine.fetch.headers import gguf_config, read_model_config
from quire_engine.gguf import GgufFile
from quire_engine.gguf_names import ROPE_FACTORS
from quire_engine.memory_plan import context_limit
from quire_engine.models.config import ModelConfig
from quire_engine.models.decoder import Decoder, DecoderWeights, LayerWeights
from quire_engine.models.rope import cos_sin_table
from quire_engine.models.shapes import check_names, expected_shapes
from quire_engine.weight_facts import quantization_of
from quire_engine.weight_files import (
    GgufSource,
    RandomSource,
    SafetensorsSource,
    StoredTensor,
    WeightSource,
)

ReadRows: TypeAlias = Callable[[int, int], Tensor]
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A decoder, ready to run on its device."""

    decoder: Decoder
    weight_bytes: int  # packed, as they lie in memory
    weight_dtype: str  # of the matrices
    activation_dtype: torch.dtype
    device: torch.device


def load_model(
    config: EngineConfig, device: torch.device, on_tensor: Callable[[], None] = lambda: None
) -> LoadedModel:
    """Read, check and pack the model that `config` names. `on_tensor` is called for each piece of
    a tensor. What exists at once beside the packed weights is bounded (activations.LOADING_BYTES).

    Raises ConfigError, ModelMissing, ModelCorrupt or ModelUnsupported.
    """
    model, source = _open(config)
    num_positions = context_limit(model, config)
    check_names(model, source.names)
    weight_dtype = matrix_dtype(config, device)
    activation_dtype = torch.float32 if device.type == "cpu" else weight_dtype or torch.bfloat16
    reader = _Reader(
        source,
        expected_shapes(model),
        device,
        weight_dtype,
        activation_dtype,
        config.quantization,
        on_tensor,
    )
    weights = _weights(model, reader, num_positions)
    return LoadedModel(
        decoder=Decoder(model, weights),
        weight_bytes=weight_bytes(weights),
        weight_dtype=config.quantization or reader.matrix_format,
        activation_dtype=activation_dtype,
        device=device,
    )


def weight_bytes(weights: DecoderWeights) -> int:
    """Bytes of all packed matrices and norms; a tied head counts once."""
    packed = {id(weights.embedding): weights.embedding, id(weights.head): weights.head}
    total = sum(matrix.nbytes for matrix in packed.values()) + weights.final_norm.nbytes
    for layer in weights.layers:
        for name in LayerWeights.__slots__:
            value = getattr(layer, name)
            total += 0 if value is None else value.nbytes
    return total


def _open(config: EngineConfig) -> tuple[ModelConfig, WeightSource]:
    path = Path(config.model)
    if config.load_format == "dummy":
        model = read_model_config(path)
        return model, RandomSource(expected_shapes(model), config.seed)
    if path.suffix == ".gguf":
        file = GgufFile.open(path)
        return gguf_config(file.header, str(path)), GgufSource(file)
    return read_model_config(path), SafetensorsSource(path)


def matrix_dtype(config: EngineConfig, device: torch.device) -> torch.dtype | None:
    """What matrices are converted to; None keeps the checkpoint's own dtype. So does float32 on a
    CPU: narrower values are widened in registers, and lie in half the bytes."""
    if device.type == "cpu" and config.dtype in ("auto", "float32"):
        return None
    return torch.bfloat16 if config.dtype == "auto" else TORCH_DTYPES[config.dtype]


class _Reader:
    """Reads tensors of the expected shapes onto the device in the right dtype."""

    def __init__(
        self,
        source: WeightSource,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        weight_dtype: torch.dtype | None,
        activation_dtype: torch.dtype,
        quantization: Quantization | None,
        on_tensor: Callable[[], None],
    ) -> None:
        self._source = source
        self._shapes = shapes
        self._device = device
        self._weight_dtype = weight_dtype
        self._activation_dtype = activation_dtype
        self._quantization = quantization
        self._on_tensor = on_tensor
        self._bytes: Counter[str] = Counter()

    @property
    def matrix_format(self) -> str:
        """What most of the matrices, by bytes, have become."""
        [(name, _)] = self._bytes.most_common(1)
        return name

    def has(self, name: str) -> bool:
        """Whether the model has tensor `name`."""
        return name in self._shapes

    def matrix(self, *names: str) -> kernels.PackedLinear:
        """The matrices `names`, one under the other, packed. ModelUnsupported where an infinity or
        a NaN among them cannot be quantized."""
        parts = [self._tensor(name) for name in names]
        try:
            blocks = self._stacked_blocks(parts)
            if blocks is not None:
                packed, becomes = kernels.pack_gguf(blocks), str(blocks.gguf_type)
            else:
                weight = self._stacked(parts)
                packed = kernels.pack_linear(weight, quantization_of(names, self._quantization))
                becomes = str(weight.dtype).removeprefix("torch.")
        except kernels.KernelInputError as error:
            raise ModelUnsupported(
                f"{' and '.join(names)} must be weights that can be packed: {error}"
            ) from error
        self._bytes[becomes] += packed.nbytes
        return packed

    def vector(self, *names: str) -> Tensor:
        """The vectors `names`, one after the other, in the activations' dtype."""
        parts = [self._tensor(name).whole() for name in names]
        self._on_tensor()
        return torch.cat(parts).to(self._device, self._activation_dtype)

    def rope_factors(self) -> Tensor | None:
        """A GGUF's frequency factors, where it has them."""
        if ROPE_FACTORS not in self._source.names:
            return None
        return self._source.tensor(ROPE_FACTORS).whole()

    def _tensor(self, name: str) -> StoredTensor:
        tensor = self._source.tensor(name)
        if tensor.shape != self._shapes[name]:
            raise ModelUnsupported(
                f"{name} must have the shape {self._shapes[name]} that the config says, got "
                f"{tensor.shape}; config and weights must come from one model"
            )
        return tensor

    def _stacked_blocks(self, parts: list[StoredTensor]) -> kernels.GgufRows | None:
        """The parts, one under the other, in the blocks of their GGUF: on a CPU, and where all of
        them have blocks of one type."""
        blocks = [part.blocks for part in parts if part.blocks is not None]
        types = {each.gguf_type for each in blocks}
        on_cpu = self._device.type == "cpu" and self._weight_dtype is None
        if len(blocks) < len(parts) or len(types) > 1 or not on_cpu:
            return None
        read = self._one_under_the_other([(each.shape[0], each.read) for each in blocks])
        rows = sum(each.shape[0] for each in blocks)
        return kernels.GgufRows((rows, blocks[0].shape[1]), types.pop(), read)

    def _stacked(self, parts: list[StoredTensor]) -> kernels.WeightRows:
        """The parts, one under the other, in one dtype."""
        dtype = self._weight_dtype or reduce(torch.promote_types, (part.dtype for part in parts))
        stacked = self._one_under_the_other([(part.shape[0], part.rows) for part in parts], dtype)
        rows = sum(part.shape[0] for part in parts)
        return kernels.WeightRows((rows, parts[0].shape[1]), dtype, self._device, stacked)

    def _one_under_the_other(
        self, parts: list[tuple[int, ReadRows]], dtype: torch.dtype = torch.uint8
    ) -> ReadRows:
        """Reads rows of several parts, each with its number of rows, as of one."""
        starts = list(accumulate((num_rows for num_rows, _ in parts), initial=0))

        def read(begin: int, end: int) -> Tensor:
            pieces = []
            for (num_rows, rows), start in zip(parts, starts, strict=False):
                first, last = max(begin - start, 0), min(end - start, num_rows)
                if first < last:
                    pieces.append(rows(first, last).to(self._device, dtype))
                    self._on_tensor()
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

        return read


def _weights(model: ModelConfig, reader: _Reader, num_positions: int) -> DecoderWeights:
    embedding = reader.matrix("model.embed_tokens.weight")
    table = cos_sin_table(model.rope, model.head_dim, num_positions, reader.rope_factors())
    final_norm = reader.vector("model.norm.weight")
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(reader, f"model.layers.{n}.") for n in range(model.num_layers)),
        final_norm=final_norm,
        head=embedding if model.tie_word_embeddings else reader.matrix("lm_head.weight"),
        cos_sin=table.to(final_norm.device),
    )


def _layer(reader: _Reader, prefix: str) -> LayerWeights:
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."

    def optional(*names: str) -> Tensor | None:
        return reader.vector(*names) if reader.has(names[0]) else None

    return LayerWeights(
        input_norm=reader.vector(f"{prefix}input_layernorm.weight"),
        qkv=reader.matrix(*(f"{attention}{part}_proj.weight" for part in "qkv")),
        qkv_bias=optional(*(f"{attention}{part}_proj.bias" for part in "qkv")),
        query_norm=optional(f"{attention}q_norm.weight"),
        key_norm=optional(f"{attention}k_norm.weight"),
        output=reader.matrix(f"{attention}o_proj.weight"),
        output_bias=optional(f"{attention}o_proj.bias"),
        post_norm=reader.vector(f"{prefix}post_attention_layernorm.weight"),
        gate_up=reader.matrix(f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"),
        down=reader.matrix(f"{mlp}down_proj.weight"),
    )
