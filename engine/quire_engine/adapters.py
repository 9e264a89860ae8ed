"""LoRA adapters as their files tell of them: PEFT's format, held against the model. Pure.

A folder with adapter_config.json and adapter_model.safetensors, as `PeftModel.save_pretrained`
writes it (https://huggingface.co/docs/peft/developer_guides/checkpoint). Its tensors come in pairs:
where the model computes W x, the adapter adds scale * B (A x), with A [r, inputs], B [outputs, r]
and scale lora_alpha / r (arXiv 2106.09685), or lora_alpha / sqrt(r) with use_rslora (arXiv
2312.03732). What the config switches on beyond that would change answers: it is refused by name.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.errors import ModelCorrupt, ModelUnsupported
from quire_engine.models.config import ModelConfig
from quire_engine.models.shapes import expected_shapes
from quire_engine.safetensors_header import TensorEntry
from quire_engine.weight_facts import FLOAT_NAMES, DeviceKind, Matrix, matrix_bytes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Half: TypeAlias = Literal["A", "B"]
LinearName: TypeAlias = Literal["qkv", "output", "gate_up", "down"]
LINEARS: Mapping[LinearName, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The decoder's products, and the model's linear layers that each is made of."""
TARGETS = tuple(path.rpartition(".")[2] for paths in LINEARS.values() for path in paths)

# Starts from which the base model is another one: its weights lack what went into A and B.
_RESIDUAL_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class _Config(msgspec.Struct, frozen=True):
    """What counts of adapter_config.json. All that is Any has to be off."""

    r: Annotated[int, msgspec.Meta(ge=1)]
    lora_alpha: float
    peft_type: str = "LORA"
    use_rslora: bool = False
    bias: str | None = "none"
    target_modules: list[str] | str | None = None
    init_lora_weights: bool | str | None = True
    use_dora: Any = None
    use_qalora: Any = None
    lora_bias: Any = None
    modules_to_save: Any = None
    trainable_token_indices: Any = None
    target_parameters: Any = None
    rank_pattern: Any = None
    alpha_pattern: Any = None
    layer_replication: Any = None
    fan_in_fan_out: Any = None
    alora_invocation_tokens: Any = None
    arrow_config: Any = None


_MUST_BE_OFF = tuple(field.name for field in msgspec.structs.fields(_Config) if field.type is Any)


@dataclass(frozen=True)
class AdapterFacts:
    """What config and header of an adapter say, and the model lets stand."""

    where: str
    rank: int
    scale: float
    dtypes: Mapping[str, str]  # of its tensors, as the file calls them, by name

    @staticmethod
    def of(
        config: bytes, tensors: Mapping[str, TensorEntry], model: ModelConfig, where: str
    ) -> "AdapterFacts":
        """The facts of the adapter in `where`. ModelCorrupt for a garbled config, ModelUnsupported
        for an adapter that is of another kind, or of another model."""
        read = _read_config(config, where)
        _check_config(read, where)
        _check_tensors(tensors, model, read.r, where)
        divisor = math.sqrt(read.r) if read.use_rslora else read.r
        dtypes = {name: entry.dtype for name, entry in tensors.items()}
        return AdapterFacts(where, read.r, read.lora_alpha / divisor, dtypes)

    def parts(self, layer: int, linear: LinearName) -> tuple[str, ...]:
        """Of the layers that this product is made of, those that it adds to."""
        paths = LINEARS[linear]
        return tuple(path for path in paths if tensor_name(layer, path, "A") in self.dtypes)


def check_adapter_config(config: bytes, where: str) -> None:
    """Refuse an adapter by its config alone, before its weights are fetched."""
    _check_config(_read_config(config, where), where)


def tensor_name(layer: int, path: str, half: Half) -> str:
    """Such as base_model.model.model.layers.0.mlp.down_proj.lora_A.weight."""
    return f"base_model.model.model.layers.{layer}.{path}.lora_{half}.weight"


def adapter_bytes(
    adapter: AdapterFacts, model: ModelConfig, engine: EngineConfig, device: DeviceKind
) -> int:
    """Bytes of its packed matrices: the A of a product one under the other, and each B. They are
    never quantized: int8 would take the little that they add."""
    plain = msgspec.structs.replace(engine, quantization=None)
    return sum(
        matrix_bytes(matrix, [adapter.dtypes[name] for name in matrix.names], plain, device)
        for matrix in _matrices(adapter, model)
    )


def lora_values(model: ModelConfig, adapters: tuple[AdapterFacts, ...]) -> int:
    """Values that an adapter takes for each token on its way: A's, and those of the widest B."""
    if not adapters:
        return 0
    widest = max(model.num_heads * model.head_dim, model.hidden_size, model.intermediate_size)
    most_parts = max(map(len, LINEARS.values()))
    return most_parts * max(adapter.rank for adapter in adapters) + widest


def _matrices(adapter: AdapterFacts, model: ModelConfig) -> Iterator[Matrix]:
    shapes = expected_shapes(model)
    for layer in range(model.num_layers):
        for linear in LINEARS:
            paths = adapter.parts(layer, linear)
            if not paths:
                continue
            sizes = {path: shapes[f"model.layers.{layer}.{path}.weight"] for path in paths}
            inputs = sizes[paths[0]][1]
            names = tuple(tensor_name(layer, path, "A") for path in paths)
            yield Matrix(names, adapter.rank * len(paths), inputs)
            for path in paths:
                yield Matrix((tensor_name(layer, path, "B"),), sizes[path][0], adapter.rank)


def _read_config(config: bytes, where: str) -> _Config:
    try:
        return msgspec.json.decode(config, type=_Config)
    except msgspec.MsgspecError as error:
        raise ModelCorrupt(
            f"{CONFIG} must be a JSON object with r >= 1 and lora_alpha, as PEFT writes it, got "
            f"that of {where}: {error}; fetch the adapter again, or save it with save_pretrained"
        ) from error


def _check_config(config: _Config, where: str) -> None:
    if config.peft_type.upper() != "LORA":
        raise _unsupported(where, "peft_type must be LORA", config.peft_type, "train a LoRA")
    if config.bias not in (None, "none"):
        raise _unsupported(where, "bias must be none", config.bias, "train it without biases")
    for name in _MUST_BE_OFF:
        value = getattr(config, name)
        if value:
            way_out = "merge it into the model, or train it without"
            raise _unsupported(where, f"{name} must be off", value, way_out)
    start = str(config.init_lora_weights).lower()
    if start.startswith(_RESIDUAL_STARTS):
        way_out = "convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
        raise _unsupported(where, "init_lora_weights must keep the base model", start, way_out)
    targets = config.target_modules
    for target in targets if isinstance(targets, list) else []:
        if target.rpartition(".")[2] not in TARGETS:
            raise _unsupported(
                where,
                f"target_modules must be of {', '.join(TARGETS)}",
                target,
                "train it on those",
            )


def _check_tensors(
    tensors: Mapping[str, TensorEntry], model: ModelConfig, rank: int, where: str
) -> None:
    if not tensors:
        raise _unsupported(where, "it must hold tensors", "none", "save it again")
    expected = _expected(model, rank)
    for name, entry in tensors.items():
        if name not in expected:
            rule = f"tensors must be lora_A and lora_B of {', '.join(TARGETS)} in the model's "
            way_out = "take an adapter of this very model"
            raise _unsupported(where, f"{rule}{model.num_layers} layers", name, way_out)
        if entry.shape != expected[name]:
            rule = f"{name} must have the shape {expected[name]} that the model and r = {rank} say"
            raise _unsupported(where, rule, entry.shape, "take an adapter of this very model")
        if entry.dtype not in FLOAT_NAMES:
            rule = f"{name} must be one of {', '.join(FLOAT_NAMES)}"
            raise _unsupported(where, rule, entry.dtype, "save it in one of these")
        other = (
            name.replace(".lora_A.", ".lora_B.")
            if ".lora_A." in name
            else name.replace(".lora_B.", ".lora_A.")
        )
        if other not in tensors:
            raise _unsupported(where, f"{name} must have its pair", f"no {other}", "save it again")


def _expected(model: ModelConfig, rank: int) -> dict[str, tuple[int, ...]]:
    """Every tensor that an adapter of this rank may have."""
    shapes = expected_shapes(model)
    expected: dict[str, tuple[int, ...]] = {}
    for layer in range(model.num_layers):
        for path in (path for paths in LINEARS.values() for path in paths):
            outputs, inputs = shapes[f"model.layers.{layer}.{path}.weight"]
            expected[tensor_name(layer, path, "A")] = (rank, inputs)
            expected[tensor_name(layer, path, "B")] = (outputs, rank)
    return expected


def _unsupported(where: str, rule: str, got: object, way_out: str) -> ModelUnsupported:
    return ModelUnsupported(f"of the adapter {where} {rule}, got {got!r}; {way_out}")
