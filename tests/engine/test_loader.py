import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_engine.config import EngineConfig
from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.fetch.headers import read_local
from quire_engine.loader import load_model
from quire_engine.models.decoder import LayerWeights
from quire_engine.weight_facts import weight_bytes
from quire_kernels.ops.linear import packed

CPU = torch.device("cpu")


def load(path, **fields):
    return load_model(EngineConfig(model=str(path), **fields), CPU)


def matrices(model):
    """All packed data of a model, in one list."""
    weights = model.decoder.weights
    parts = [weights.embedding.data, weights.head.data, weights.final_norm]
    for layer in weights.layers:
        values = [getattr(layer, name) for name in LayerWeights.__slots__]
        parts += [getattr(value, "data", value) for value in values if value is not None]
    return parts


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sharded_and_single_files_give_the_same_weights(tiny_model):
    single = tiny_model("qwen3", shard_size="1GB")
    sharded = tiny_model("qwen3", shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert (sharded / "model.safetensors.index.json").exists()
    for left, right in zip(matrices(load(single)), matrices(load(sharded)), strict=True):
        assert torch.equal(left, right)


def test_small_pieces_give_the_same_weights(tiny_model, monkeypatch):
    """Pieces that end within a matrix of several, and a float32 that bfloat16 holds at first."""
    for dtype in (torch.bfloat16, torch.float32):
        folder = tiny_model("llama-untied-bias", dtype)
        whole = matrices(load(folder))
        with monkeypatch.context() as small:
            small.setattr(packed, "VALUES_AT_ONCE", 48 * 96)
            pieces = matrices(load(folder))
        for left, right in zip(whole, pieces, strict=True):
            assert torch.equal(left, right)


def test_a_tied_head_is_the_embedding_itself(tiny_model):
    weights = load(tiny_model("llama")).decoder.weights
    assert weights.head is weights.embedding
    untied = load(tiny_model("llama-untied-bias")).decoder.weights
    assert untied.head is not untied.embedding


def test_bf16_stays_bf16_in_memory(tiny_model):
    as_bf16, as_fp32 = load(tiny_model(dtype=torch.bfloat16)), load(tiny_model())
    assert (as_bf16.weight_dtype, as_fp32.weight_dtype) == ("bfloat16", "float32")
    assert as_bf16.weight_bytes < 0.6 * as_fp32.weight_bytes
    assert as_bf16.activation_dtype == torch.float32


def test_an_asked_for_dtype_is_converted_to(tiny_model):
    converted = load(tiny_model(), dtype="bfloat16")
    assert converted.weight_dtype == "bfloat16"
    for left, right in zip(
        matrices(converted)[:2], matrices(load(tiny_model(dtype=torch.bfloat16)))[:2], strict=True
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_weights_take_the_bytes_that_the_plan_counts(tiny_model, quantization):
    for family in ("llama", "llama-untied-bias", "qwen3"):
        for dtype in (torch.bfloat16, torch.float32):
            folder = tiny_model(family, dtype)
            engine = EngineConfig(model=str(folder), quantization=quantization)
            facts = read_local(folder)
            loaded = load_model(engine, CPU)
            assert loaded.weight_dtype == quantization
            assert loaded.weight_bytes == weight_bytes(facts.config, facts.weights, engine, "cpu")


def test_formats_that_are_mixed_in_one_matrix_take_what_is_planned(tiny_model):
    """float16 beside bfloat16 becomes float32, which holds both."""
    folder = tiny_model(dtype=torch.bfloat16)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("self_attn.v_proj", "mlp.up_proj"):
        name = f"model.layers.0.{name}.weight"
        tensors[name] = (tensors[name].float() * 1.001).half()
    save_file(tensors, path)
    facts, engine = read_local(folder), EngineConfig(model=str(folder))
    planned = weight_bytes(facts.config, facts.weights, engine, "cpu")
    assert load_model(engine, CPU).weight_bytes == planned


def test_a_weight_that_is_not_finite_is_not_quantized(tiny_model):
    folder = tiny_model()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = float("nan")
    save_file(tensors, path)
    load(folder)
    rule = r"1\.mlp\.gate_proj.* and .*1\.mlp\.up_proj.*must be finite.* row 165"  # 160 of gate's
    with pytest.raises(ModelUnsupported, match=rule):
        load(folder, quantization="int8")


def test_progress_moves_with_each_tensor(tiny_model):
    names = []
    model = str(tiny_model(dtype=torch.bfloat16))
    load_model(EngineConfig(model=model), CPU, lambda: names.append(1))
    assert len(names) == 2 + 3 * 9


def test_dummy_weights_need_no_files(tiny_model):
    folder = tiny_model()
    (folder / "model.safetensors").unlink()
    first, second = load(folder, load_format="dummy"), load(folder, load_format="dummy")
    for left, right in zip(matrices(first), matrices(second), strict=True):
        assert torch.equal(left, right)


def test_a_cut_file_is_corrupt(tiny_model):
    folder = tiny_model()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelCorrupt, match="fetch the model again"):
            load(folder)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelCorrupt, match=f"it has {len(whole) + 1:,}"):
        load(folder)


def test_a_garbled_header_is_corrupt(tiny_model):
    folder = tiny_model()
    path = folder / "model.safetensors"
    garbled = bytearray(path.read_bytes())
    garbled[20:40] = b"x" * 20
    path.write_bytes(garbled)
    with pytest.raises(ModelCorrupt, match="header is garbled"):
        load(folder)


def test_a_missing_shard_is_corrupt_and_named(tiny_model):
    folder = tiny_model(shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelCorrupt, match=shard.name):
        load(folder)


def test_an_index_that_is_cut_is_corrupt(tiny_model):
    folder = tiny_model(shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes()[:-50])
    with pytest.raises(ModelCorrupt, match="weight_map"):
        load(folder)


def test_a_cut_config_is_corrupt(tiny_model):
    folder = tiny_model()
    path = folder / "config.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelCorrupt, match=r"config\.json must be a whole"):
        load(folder)


def test_nothing_there_is_missing(tmp_path, tiny_model):
    with pytest.raises(ModelMissing, match=r"folder or a \.gguf"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelMissing, match=r"config\.json"):
        load(tmp_path)
    folder = tiny_model()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelMissing, match="safetensors"):
        load(folder)


def test_weights_and_config_of_two_models_do_not_mix(tiny_model):
    folder = tiny_model()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    extra = tensors | {"model.layers.0.mlp.router.weight": torch.ones(2)}
    save_file(extra, path)
    with pytest.raises(ModelUnsupported, match=r"1 unknown \(model\.layers\.0\.mlp\.router"):
        load(folder)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelUnsupported, match=r"1 missing \(model\.norm\.weight\)"):
        load(folder)


def test_a_wrong_shape_is_named(tiny_model):
    folder = tiny_model()
    edit_config(folder, intermediate_size=176)
    with pytest.raises(ModelUnsupported, match=r"gate_proj.*\(176, 96\).*got \(160, 96\)"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture must be one of Llama.*Mamba"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, got 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type.*yarn"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_what_we_do_not_run_is_said(tiny_model, changes, complaint):
    folder = tiny_model()
    edit_config(folder, **changes)
    with pytest.raises(ModelUnsupported, match=complaint):
        load(folder)
