"""What a model is, read from config.json or from a GGUF's metadata. No torch here."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.gguf_header import GgufArray, GgufValue

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
GGUF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. `llama3` scaling stretches low frequencies by `factor` (Llama 3.1)."""

    theta: float = 10000.0
    scaling: str = "default"  # default, linear or llama3
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of a decoder."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool

    @property
    def scale(self) -> float:
        """What attention multiplies query · key by."""
        return 1.0 / math.sqrt(self.head_dim)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes of keys and values that one token keeps in the cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value


def read_config(model_dir: Path) -> ModelConfig:
    """The config of the Hugging Face folder `model_dir`."""
    path = model_dir / "config.json"
    if not model_dir.is_dir():
        raise ModelMissing(
            f"model must be a folder or a .gguf file, got {model_dir}; fetch it there first"
        )
    if not path.is_file():
        raise ModelMissing(
            f"a model folder must hold config.json, got {model_dir}; fetch the model there first"
        )
    return parse_config(path.read_bytes(), str(model_dir))


def parse_config(content: bytes, where: str) -> ModelConfig:
    """The config in `content`, the config.json of `where`. ModelCorrupt unless it holds one."""
    try:
        return from_hugging_face(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(
            "config.json must be a whole JSON object with the model's shapes, got that of "
            f"{where}: {error!r}; fetch the model again, or choose one of a supported family"
        ) from error


def from_hugging_face(config: Mapping[str, object]) -> ModelConfig:
    """The config in the parsed config.json `config`. KeyError when a needed key is missing."""
    fields = _Fields(config)
    architecture = fields.first_text("architectures")
    _supported(
        architecture in SUPPORTED_ARCHITECTURES,
        "architecture",
        architecture,
        ", ".join(SUPPORTED_ARCHITECTURES),
    )
    activation = str(config.get("hidden_act", "silu"))
    _supported(activation == "silu", "hidden_act", activation, "silu")
    _supported(not config.get("mlp_bias"), "mlp_bias", config.get("mlp_bias"), "false")
    _supported(not config.get("use_sliding_window"), "use_sliding_window", True, "false")
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    has_bias = bool(config.get("attention_bias", False))
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_heads),
        max_model_len=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(config),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=has_bias or is_qwen2,
        output_bias=has_bias and not is_qwen2,
        qk_norm=architecture == "Qwen3ForCausalLM",
    )


def from_gguf(metadata: Mapping[str, GgufValue], tensor_names: Collection[str]) -> ModelConfig:
    """The config in a GGUF's metadata; what it does not say, its tensors' names do."""
    name = str(metadata.get("general.architecture"))
    _supported(name in GGUF_ARCHITECTURES, "GGUF architecture", name, ", ".join(GGUF_ARCHITECTURES))
    fields = _Fields(metadata, prefix=f"{name}.")
    scaling = str(metadata.get(f"{name}.rope.scaling.type", "none"))
    _supported(scaling in ("none", "linear"), "GGUF rope scaling", scaling, "none, linear")
    num_heads = fields.integer("attention.head_count")
    hidden_size = fields.integer("embedding_length")
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    return ModelConfig(
        architecture=GGUF_ARCHITECTURES[name],
        vocab_size=len(vocabulary)
        if isinstance(vocabulary, GgufArray)
        else fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=fields.integer("attention.key_length", hidden_size // num_heads),
        max_model_len=fields.integer("context_length"),
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-6),
        rope=RopeConfig(
            theta=fields.number("rope.freq_base", 10000.0),
            scaling="linear" if scaling == "linear" else "default",
            factor=fields.number("rope.scaling.factor", 1.0),
        ),
        tie_word_embeddings="output.weight" not in tensor_names,
        qkv_bias="blk.0.attn_q.bias" in tensor_names,
        output_bias="blk.0.attn_output.bias" in tensor_names,
        qk_norm="blk.0.attn_q_norm.weight" in tensor_names,
    )


@dataclass(frozen=True)
class _Fields:
    """Typed reads from a parsed config."""

    values: Mapping[str, object]
    prefix: str = ""

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.prefix}{key} must be an integer >= 1, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.prefix}{key} must be a number, got {value!r}")
        return float(value)

    def first_text(self, key: str) -> str:
        value = self._get(key, None)
        if not isinstance(value, list) or not value:
            raise ValueError(f"{self.prefix}{key} must be a list of names, got {value!r}")
        return str(value[0])

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(self.prefix + key)
        if value is not None:
            return value
        if default is None:
            raise KeyError(self.prefix + key)
        return default


def _rope(config: Mapping[str, object]) -> RopeConfig:
    # transformers 5 writes rope_parameters; older files have rope_theta and rope_scaling.
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"rope_parameters must be an object, got {parameters!r}")
    fields = _Fields(parameters)
    scaling = str(parameters.get("rope_type", parameters.get("type", "default")))
    _supported(
        scaling in ("default", "linear", "llama3"), "rope_type", scaling, "default, linear, llama3"
    )
    theta = fields.number("rope_theta", _Fields(config).number("rope_theta", 10000.0))
    return RopeConfig(
        theta=theta,
        scaling=scaling,
        factor=fields.number("factor", 1.0),
        low_freq_factor=fields.number("low_freq_factor", 1.0),
        high_freq_factor=fields.number("high_freq_factor", 4.0),
        original_max_position_embeddings=fields.integer("original_max_position_embeddings", 8192),
    )


def _supported(holds: bool, name: str, got: object, choices: str) -> None:
    if not holds:
        raise ModelUnsupported(
            f"{name} must be one of {choices}, got {got!r}; choose a model of these families"
        )
