"""Small random models for tests: real formats, no torch, milliseconds to write."""

import json
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TinyModel:
    """Shapes of a Llama that nobody would talk to."""

    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 2048
    max_model_len: int = 512
    architecture: str = "LlamaForCausalLM"

    def config(self) -> dict[str, object]:
        return {
            "architectures": [self.architecture],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_model_len,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        kv_rows = hidden // self.num_heads * self.num_kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (self.vocab_size, hidden),
        }
        for number in range(self.num_layers):
            prefix = f"model.layers.{number}."
            shapes |= {
                f"{prefix}input_layernorm.weight": (hidden,),
                f"{prefix}post_attention_layernorm.weight": (hidden,),
                f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
                f"{prefix}self_attn.k_proj.weight": (kv_rows, hidden),
                f"{prefix}self_attn.v_proj.weight": (kv_rows, hidden),
                f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
                f"{prefix}mlp.gate_proj.weight": (inner, hidden),
                f"{prefix}mlp.up_proj.weight": (inner, hidden),
                f"{prefix}mlp.down_proj.weight": (hidden, inner),
            }
        return shapes

    @property
    def parameters(self) -> int:
        return sum(_count(shape) for shape in self.shapes().values())


def write_tiny_model(
    folder: Path, model: TinyModel | None = None, *, num_shards: int = 1, seed: int = 0
) -> Path:
    """Write config.json and bfloat16 weights, in shards with an index when there are several."""
    model = model or TinyModel()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config(), indent=1))
    chance = random.Random(seed)
    names = sorted(model.shapes())
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors", _tensors(model, names, chance))
        return folder
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        part = names[number::num_shards]
        write_safetensors(folder / file, _tensors(model, part, chance))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 2 * model.parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], bytes]]) -> None:
    """Write bfloat16 tensors (shape and little-endian bytes) in the safetensors format."""
    header, _ = safetensors_header({name: shape for name, (shape, _) in tensors.items()})
    with path.open("wb") as file:
        file.write(header)
        for _, data in tensors.values():
            file.write(data)


def safetensors_header(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """What stands before bfloat16 tensors of these shapes, and how many bytes they are."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * _count(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def _tensors(
    model: TinyModel, names: list[str], chance: random.Random
) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {
        name: (shape := model.shapes()[name], random_values(_count(shape), chance))
        for name in names
    }


_SMALL = bytes(0x3C | (byte & 0x80) for byte in range(256))


def random_values(count: int, chance: random.Random) -> bytes:
    """bfloat16 in ±[2^-7, 2^-6): a sign and exponent byte that is small, a random other one."""
    data = bytearray(chance.randbytes(2 * count))
    data[1::2] = data[1::2].translate(_SMALL)
    return bytes(data)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
