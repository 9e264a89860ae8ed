"""Small random LoRA adapters for tests: PEFT's format, no torch, milliseconds to write."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire_cluster.tiny_models import random_values, write_safetensors

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def write_tiny_adapter(
    folder: Path,
    model: Mapping[str, object],
    *,
    rank: int = 4,
    alpha: float = 64,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
    **config: object,
) -> Path:
    """Write adapter_config.json and bfloat16 weights for the model with this config.json. `config`
    is written over what PEFT would say of such an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "target_modules": list(targets),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(plain | config, indent=1))
    chance = random.Random(seed)
    shapes = adapter_shapes(model, rank, targets)
    tensors: dict[str, tuple[tuple[int, ...], bytes]] = {
        name: (shape, _values(shape, chance)) for name, shape in shapes.items()
    }
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def adapter_shapes(
    model: Mapping[str, object], rank: int, targets: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Each tensor of an adapter, A [rank, inputs] and B [outputs, rank]."""
    layers = model["num_hidden_layers"]
    assert isinstance(layers, int)
    shapes: dict[str, tuple[int, int]] = {}
    for number in range(layers):
        for target in targets:
            outputs, inputs = _shape(model, target)
            block = "self_attn" if target in ATTENTION else "mlp"
            name = f"base_model.model.model.layers.{number}.{block}.{target}"
            shapes[f"{name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{name}.lora_B.weight"] = (outputs, rank)
    return shapes


def _shape(model: Mapping[str, object], target: str) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""

    def size(key: str, default: object = None) -> int:
        value = model.get(key) or default
        assert isinstance(value, int)
        return value

    hidden, inner, heads = size("hidden_size"), size("intermediate_size"), "num_attention_heads"
    dim = size("head_dim", hidden // size(heads))
    query, kv = size(heads) * dim, size("num_key_value_heads", size(heads)) * dim
    return {
        "q_proj": (query, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }[target]


def _values(shape: tuple[int, int], chance: random.Random) -> bytes:
    return random_values(shape[0] * shape[1], chance)
