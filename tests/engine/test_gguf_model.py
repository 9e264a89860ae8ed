"""A model from a GGUF gives what the same weights give from safetensors."""

import dataclasses

import gguf
import pytest
import torch

import quire_kernels as kernels
from quire_engine.config import EngineConfig
from quire_engine.errors import ModelUnsupported
from quire_engine.fetch import PlanOptions
from quire_engine.fetch.plan_command import find, plan_of
from quire_engine.loader import load_model
from quire_engine.models.decoder import LayerWeights
from quire_engine.start import start_engine
from quire_kernels.ops.linear import packed

CPU = torch.device("cpu")
_GGUF_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen2-tied": "qwen2", "qwen3": "qwen3"}


def interleaved(rows, num_heads):
    """Rows of each head as llama.cpp's converter writes them: halves become pairs."""
    heads = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture
def write_gguf(tmp_path, reference_model):
    """Writes a family's tiny model as a GGUF of one tensor type; gives its path."""

    def write_gguf(family, type_name, architecture=None):
        model = reference_model(family)
        config, name = model.config, architecture or _GGUF_ARCHITECTURES[family]
        path = tmp_path / f"{family}.gguf"
        writer = gguf.GGUFWriter(path, name)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
        kind = gguf.GGMLQuantizationType[type_name]
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
        for key, tensor in model.state_dict().items():
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue
            values = tensor.float().numpy()
            if name == "llama" and ".q_proj." in key:
                values = interleaved(values, config.num_attention_heads)
            if name == "llama" and ".k_proj." in key:
                values = interleaved(values, config.num_key_value_heads)
            gguf_name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if values.ndim == 2:
                writer.add_tensor(gguf_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write_gguf


def load(path):
    return load_model(EngineConfig(model=str(path)), CPU)


@pytest.mark.parametrize("family", sorted(_GGUF_ARCHITECTURES))
def test_bf16_weights_are_the_same_from_both_formats(family, write_gguf, tiny_model):
    from_gguf = load(write_gguf(family, "BF16")).decoder
    from_safetensors = load(tiny_model(family, torch.bfloat16)).decoder
    eps = from_gguf.config.rms_norm_eps  # a float32 there
    assert eps == pytest.approx(from_safetensors.config.rms_norm_eps, rel=1e-6)
    assert dataclasses.replace(from_safetensors.config, rms_norm_eps=eps) == from_gguf.config
    ours, theirs = from_gguf.weights, from_safetensors.weights
    assert torch.equal(ours.embedding.data, theirs.embedding.data)
    assert torch.equal(ours.head.data, theirs.head.data)
    assert torch.equal(ours.cos_sin, theirs.cos_sin)
    for left, right in zip(ours.layers, theirs.layers, strict=True):
        for name in ("qkv", "output", "gate_up", "down"):
            assert torch.equal(getattr(left, name).data, getattr(right, name).data), name
        for name in LayerWeights.__slots__:
            vector = getattr(left, name)
            if isinstance(vector, torch.Tensor):  # float32 in a GGUF, bfloat16 in the other
                assert torch.equal(vector.bfloat16().float(), getattr(right, name)), name


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_blocks_are_kept_as_they_are_and_mean_what_they_say(family, type_name, write_gguf):
    """The embedding as the format's own package reads it, and in the bytes that are planned; logits
    as those of the widened weights, up to bfloat16's rounding of these."""
    path = write_gguf(family, type_name)
    kept, widened = load(path), load_model(EngineConfig(model=str(path), dtype="bfloat16"), CPU)
    assert (kept.weight_dtype, widened.weight_dtype) == (type_name, "bfloat16")
    engine = EngineConfig(model=str(path), device="cpu", kv_cache_memory_bytes=1 << 20)
    plan = plan_of(find(PlanOptions(engine.model, engine)).facts, engine, None)
    assert (plan.weight_dtype, plan.weight_bytes) == (type_name, kept.weight_bytes)
    [stored] = [t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight"]
    meant = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
    ours, theirs = kept.decoder.weights, widened.decoder.weights
    assert torch.equal(kernels.embedding(torch.arange(len(meant)), ours.embedding), meant)
    x = torch.randn(9, meant.shape[1])
    for left, right in zip(ours.layers, theirs.layers, strict=True):
        expected = kernels.linear(x, right.qkv)
        error = (kernels.linear(x, left.qkv) - expected).abs().max()
        assert error < 2**-7 * expected.abs().max()


def test_small_pieces_of_a_gguf_give_the_same_weights(write_gguf, monkeypatch):
    """llama's query and key, whose rows stand in another order in the file."""
    path = write_gguf("llama", "Q8_0")
    whole = load(path).decoder.weights.layers
    monkeypatch.setattr(packed, "VALUES_AT_ONCE", 16 * 96)
    for left, right in zip(whole, load(path).decoder.weights.layers, strict=True):
        assert torch.equal(left.qkv.data, right.qkv.data)
        assert torch.equal(left.down.data, right.down.data)


def test_dummy_weights_take_the_shapes_of_a_gguf_and_nothing_else(write_gguf):
    path = write_gguf("qwen3", "F32")
    engine = EngineConfig(
        model=str(path), device="cpu", load_format="dummy", kv_cache_memory_bytes=1 << 20
    )
    plan = plan_of(find(PlanOptions(engine.model, engine)).facts, engine, None)
    _, ready = start_engine(engine)
    assert (ready.dtype, ready.weight_bytes) == ("bfloat16", plan.weight_bytes)
    stored, random = load(path).decoder.weights, load_model(engine, CPU).decoder.weights
    assert stored.embedding.shape == random.embedding.shape
    assert stored.embedding.format != random.embedding.format


def test_a_float_gguf_is_quantized_and_a_quantized_one_is_not(write_gguf):
    config = {"device": "cpu", "quantization": "int8", "kv_cache_memory_bytes": 1 << 20}
    _, ready = start_engine(EngineConfig(model=str(write_gguf("qwen3", "F16")), **config))
    assert ready.dtype == "int8"
    with pytest.raises(ModelUnsupported, match=r"must start from float weights .* got Q8_0 for"):
        start_engine(EngineConfig(model=str(write_gguf("qwen3", "Q8_0")), **config))


def test_another_architecture_is_named(write_gguf):
    path = write_gguf("llama", "BF16", architecture="gemma")
    with pytest.raises(ModelUnsupported, match=r"GGUF architecture must be.*'gemma'"):
        load(path)
