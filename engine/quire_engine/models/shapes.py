"""The tensors that a model of a config has. Pure: loader and memory plan check by it."""

from collections.abc import Set

from quire_engine.errors import ModelUnsupported
from quire_engine.gguf_names import ROPE_FACTORS
from quire_engine.models.config import ModelConfig


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this config has, by Hugging Face name."""
    hidden, inner, dim = model.hidden_size, model.intermediate_size, model.head_dim
    query_rows, kv_rows = model.num_heads * dim, model.num_kv_heads * dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, query_rows),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if model.qkv_bias:
        layer["self_attn.q_proj.bias"] = (query_rows,)
        layer["self_attn.k_proj.bias"] = layer["self_attn.v_proj.bias"] = (kv_rows,)
    if model.output_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if model.qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (dim,)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    for number in range(model.num_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def check_names(model: ModelConfig, names: Set[str]) -> None:
    """Raise ModelUnsupported unless `names` are the tensors of a model of this config."""
    expected = expected_shapes(model).keys()
    missing = sorted(expected - names)
    extra = sorted(name for name in names - expected if not _is_derived(name))
    if missing or extra:
        raise ModelUnsupported(
            f"the weights must be those of {model.architecture}, {model.num_layers} layers, "
            f"got {len(missing)} missing ({', '.join(missing[:3])}) and {len(extra)} unknown "
            f"({', '.join(extra[:3])}); config and weights must come from one model"
        )


def _is_derived(name: str) -> bool:
    """Old checkpoints carry rotary tables, tied ones a copy of the embedding: we make our own."""
    return name in ("lm_head.weight", ROPE_FACTORS) or name.endswith("inv_freq")
