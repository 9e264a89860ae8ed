"""What an adapter's files say is held against the model, and refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_engine.adapter_loader import load_adapter
from quire_engine.adapters import WEIGHTS, AdapterFacts, adapter_bytes, tensor_name
from quire_engine.config import EngineConfig
from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.fetch.headers import read_local_adapter
from quire_engine.loader import load_model
from quire_engine.models.config import read_config


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def read(folder: Path, model: Path) -> AdapterFacts:
    return read_local_adapter(folder, read_config(model))


def test_the_scale_is_alpha_over_rank(model, make_adapter):
    assert read(make_adapter(model, rank=4, alpha=6), model).scale == 1.5


def test_rank_stabilized_adapters_divide_by_the_root(model, make_adapter):
    folder = make_adapter(model, rank=4, alpha=6, use_rslora=True)
    assert read(folder, model).scale == 3.0


def test_only_targets_have_parts(model, make_adapter):
    facts = read(make_adapter(model, targets=("q_proj", "v_proj", "down_proj")), model)
    assert facts.parts(0, "qkv") == ("self_attn.q_proj", "self_attn.v_proj")
    assert facts.parts(2, "down") == ("mlp.down_proj",)
    assert facts.parts(1, "output") == ()
    assert facts.parts(3, "qkv") == (), "the model has three layers"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"bias": "lora_only"}, "bias must be none, got 'lora_only'"),
        ({"use_dora": True}, "use_dora must be off, got True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save must be off, got \['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern must be off"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern must be off"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication must be off"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices must be off"),
        ({"lora_bias": True}, "lora_bias must be off"),
        ({"init_lora_weights": "pissa_niter_4"}, "must keep the base model, got 'pissa_niter_4'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules must be of .* got 'lm_head'"),
    ],
)
def test_what_would_change_answers_is_refused_by_name(model, make_adapter, fields, words):
    with pytest.raises(ModelUnsupported, match=words):
        read(make_adapter(model, **fields), model)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva"])
def test_starts_that_leave_the_base_model_alone_are_taken(model, make_adapter, start):
    read(make_adapter(model, init_lora_weights=start), model)


@pytest.mark.parametrize("fields", [{"r": 0}, {"r": "8"}, {"lora_alpha": None}])
def test_a_garbled_config_is_corrupt(model, make_adapter, fields):
    with pytest.raises(ModelCorrupt, match=r"adapter_config\.json must be a JSON object with r"):
        read(make_adapter(model, **fields), model)


def test_a_rank_that_the_tensors_have_not_is_refused(model, make_adapter):
    with pytest.raises(ModelUnsupported, match=r"must have the shape \(8, 96\) .* r = 8"):
        read(make_adapter(model, rank=4, r=8), model)


def test_another_models_adapter_is_refused(model, make_adapter, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "other").mkdir()
    for change, words in (
        ({"hidden_size": 192, "head_dim": 16}, "must have the shape"),
        ({"num_hidden_layers": 4}, "of q_proj, .* in the model's 3 layers, got .*layers.3."),
    ):
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelUnsupported, match=words):
            read(make_adapter(tmp_path / "other"), model)


def test_a_half_without_its_pair_is_refused(model, make_adapter):
    folder = make_adapter(model)
    tensors = load_file(folder / WEIGHTS)
    del tensors[tensor_name(1, "mlp.up_proj", "B")]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ModelUnsupported, match=r"must have its pair, got 'no .*up_proj\.lora_B"):
        read(folder, model)


def test_integers_are_no_weights(model, make_adapter):
    folder = make_adapter(model)
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.char() for name, tensor in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(ModelUnsupported, match="must be one of F32, BF16, F16, got 'I8'"):
        read(folder, model)


def test_missing_and_cut_files_have_their_own_ends(model, make_adapter):
    folder = make_adapter(model)
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ModelCorrupt, match="its header asks for"):
        read(folder, model)
    path.unlink()
    with pytest.raises(ModelMissing, match=r"without adapter_model\.safetensors"):
        read(folder, model)


def test_bytes_are_those_of_the_packed_matrices(model, make_adapter):
    """Of qkv, down: A of 2 x 4 and of 4 rows, each in panels of 16; B of 96, 32 and 96 rows."""
    facts = read(make_adapter(model, targets=("q_proj", "v_proj", "down_proj")), model)
    engine = EngineConfig(model=str(model), quantization="int8")
    layer = 16 * 96 + (96 + 32) * 4 + 16 * 160 + 96 * 4
    assert adapter_bytes(facts, read_config(model), engine, "cpu") == 3 * 2 * layer


def test_a_file_with_a_hole_is_corrupt(model, make_adapter):
    folder = make_adapter(model)
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[tensor_name(1, "self_attn.q_proj", "A")]["data_offsets"][1] -= 4
    packed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    (folder / WEIGHTS).write_bytes(data[:8] + packed + data[8 + length :])
    loaded = load_model(EngineConfig(model=str(model), device="cpu"), torch.device("cpu"))
    with pytest.raises(ModelCorrupt, match="must be whole"):
        load_adapter(folder, loaded, None)
