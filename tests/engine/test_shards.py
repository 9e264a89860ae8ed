"""Which files are a model's weights, and which only lie beside them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.shards import INDEX, SINGLE, choose_shards, shards_of, tensors_in

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
COPIES = (
    "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "pytorch_model.bin",
    "adapter_model.safetensors", "original/model.safetensors", "onnx/model.onnx",
)  # fmt: skip


def index_of(weight_map: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def test_the_index_wins_over_everything() -> None:
    names = {INDEX, SINGLE, FIRST, SECOND, "model-00001-of-00003.safetensors", *COPIES}
    index = index_of({"a": FIRST, "b": SECOND, "c": FIRST})
    assert choose_shards(names, index, "here") == {FIRST: {"a", "c"}, SECOND: {"b"}}


def test_without_an_index_model_safetensors_wins() -> None:
    assert choose_shards({SINGLE, FIRST, "other.safetensors", *COPIES}, None, "here") == {
        SINGLE: None
    }


@pytest.mark.parametrize("name", ["weights.safetensors", "model-00001-of-00001.safetensors"])
def test_else_the_only_file_there_is(name: str) -> None:
    assert choose_shards({name, "config.json", *COPIES}, None, "here") == {name: None}


@pytest.mark.parametrize("names", [(), COPIES, ("sub/weights.safetensors",)])
def test_copies_in_other_forms_are_no_weights(names: tuple[str, ...]) -> None:
    with pytest.raises(ModelMissing, match=r"here must hold .*index\.json.* got none; fetch"):
        choose_shards(names, None, "here")


def test_several_without_an_index_are_not_guessed_at() -> None:
    with pytest.raises(ModelUnsupported, match=f"got 2 without an index .{FIRST}.*add the index"):
        choose_shards({FIRST, SECOND}, None, "here")


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (b"", "no whole weight_map"),
        (b"{}", "no whole weight_map"),
        (index_of({"a": FIRST})[:-3], "no whole weight_map"),
        (index_of([FIRST]), "no whole weight_map"),
        (index_of({"a": 1}), "no whole weight_map"),
        (index_of({}), "empty"),
        (index_of({"a": FIRST, "b": SECOND}), f"names {SECOND}, which is not there"),
        (index_of({"a": "../x.safetensors"}), "no .*file beside it"),
        (index_of({"a": "/x.safetensors"}), "no .*file beside it"),
        (index_of({"a": "model.bin"}), "no .*file beside it"),
    ],
)
def test_a_bad_index_is_corrupt(index: bytes, complaint: str) -> None:
    with pytest.raises(ModelCorrupt, match=complaint):
        choose_shards({INDEX, FIRST, "model.bin"}, index, "here")


@given(st.sets(st.sampled_from([SINGLE, FIRST, SECOND, "x.safetensors", *COPIES, "config.json"])))
def test_no_copy_is_ever_chosen(names: set[str]) -> None:
    try:
        shards = choose_shards(names, None, "here")
    except (ModelMissing, ModelUnsupported):
        return
    assert len(shards) == 1
    assert shards.keys() <= names - set(COPIES)


def test_a_folder_is_read_by_the_same_rule(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=str(tmp_path)):
        shards_of(tmp_path / "nowhere")
    (tmp_path / "original").mkdir()
    for name in (*COPIES[:5], FIRST):
        (tmp_path / name).touch()
    assert shards_of(tmp_path) == {FIRST: None}
    (tmp_path / SECOND).touch()
    (tmp_path / INDEX).write_bytes(index_of({"a": SECOND}))
    assert shards_of(tmp_path) == {SECOND: {"a"}}


def test_a_shard_gives_what_the_index_promises_of_it() -> None:
    assert tensors_in("x", ["a", "b"], None) == ["a", "b"]
    assert tensors_in("x", ["a", "b"], frozenset({"b"})) == ["b"]
    with pytest.raises(ModelCorrupt, match="got x without c"):
        tensors_in("x", ["a", "b"], frozenset({"b", "c"}))
