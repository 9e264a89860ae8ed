import copy
import functools
import os

import pytest
import torch

# A serving process too gives torch one thread beside the C++ kernels: where cores are busy, each
# small operation on several waits for the last of them (a maximum of 49,152: 2 ms, not 0.01).
torch.set_num_threads(1)

FAMILIES = ("llama", "llama-scaled", "llama-untied-bias", "qwen2", "qwen2-tied", "qwen3")

_SHAPES = {
    "vocab_size": 128,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # large, so that attention and norms matter
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _reference(family):
    import transformers as t

    shapes = _SHAPES
    models = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**shapes, tie_word_embeddings=True)),
        "llama-scaled": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**shapes, rope_parameters=_LLAMA3, tie_word_embeddings=True)
        ),
        "llama-untied-bias": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**shapes, attention_bias=True, tie_word_embeddings=False)
        ),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**shapes)),
        "qwen2-tied": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**shapes, tie_word_embeddings=True)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**shapes, head_dim=16)),
    }
    torch.manual_seed(FAMILIES.index(family))
    model = models[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # transformers starts them at zero, where they would not show
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """All here is plain HTTP on loopback, and each client would read the system's roots (40 ms)."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.fixture(scope="session")
def reference_model():
    """A tiny random transformers model of a family, the same one each time."""
    return functools.cache(_reference)


@pytest.fixture(scope="session")
def tiny_model(reference_model, tmp_path_factory):
    """Writes a family's tiny model in `dtype` as transformers does; gives its folder."""

    def tiny_model(family="llama", dtype=torch.float32, shard_size="1GB"):
        folder = tmp_path_factory.mktemp(family)
        model = copy.deepcopy(reference_model(family)).to(dtype)
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder

    return tiny_model
