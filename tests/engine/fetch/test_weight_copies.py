"""Repositories that carry their weights more than once: fetched = planned = loaded, and no more."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quire_cluster.hub import running_mirror
from quire_cluster.tiny_models import TinyModel, write_safetensors, write_tiny_model
from quire_engine.config import EngineConfig
from quire_engine.fetch import PlanOptions, SourceOptions
from quire_engine.fetch.headers import read_local
from quire_engine.fetch.plan_command import find
from quire_engine.memory_plan import make_plan
from quire_engine.shards import INDEX
from quire_engine.weight_files import SafetensorsSource

SINGLE = "model.safetensors"
SHARDS = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}


def single(folder: Path) -> set[str]:
    write_tiny_model(folder)
    return {SINGLE}


def sharded(folder: Path) -> set[str]:
    write_tiny_model(folder, num_shards=3)
    return {INDEX, *SHARDS}


def single_of_another_name(folder: Path) -> set[str]:
    single(folder)
    (folder / SINGLE).rename(folder / "weights.safetensors")
    return {"weights.safetensors"}


def single_beside_shards_without_an_index(folder: Path) -> set[str]:
    sharded(folder)
    (folder / INDEX).unlink()
    return single(folder)


def sharded_beside_a_single(folder: Path) -> set[str]:
    single(folder)
    return sharded(folder)


def sharded_beside_shards_of_an_earlier_upload(folder: Path) -> set[str]:
    write_tiny_model(folder, num_shards=2)
    return sharded(folder)


def tensor_in_two_shards(folder: Path) -> set[str]:
    """The index says which one counts."""
    kept = sharded(folder)
    shard = folder / "model-00003-of-00003.safetensors"
    index = json.loads((folder / INDEX).read_bytes())
    own = {tensor for tensor, file in index["weight_map"].items() if file == shard.name}
    twice = next(tensor for tensor in index["weight_map"] if tensor not in own)
    shapes = TinyModel().shapes()
    contents = {
        tensor: (shapes[tensor], bytes(2 * math.prod(shapes[tensor]))) for tensor in {*own, twice}
    }
    write_safetensors(shard, contents)
    return kept


LAYOUTS = (
    single, sharded, single_of_another_name, single_beside_shards_without_an_index,
    sharded_beside_a_single, sharded_beside_shards_of_an_earlier_upload, tensor_in_two_shards,
)  # fmt: skip


def add_copies(folder: Path, weights: Path) -> None:
    """The same weights in the other forms that repositories carry."""
    (folder / "original").mkdir()
    (folder / "onnx").mkdir()
    for copy in (
        "consolidated.safetensors",
        "consolidated.00.pth",
        "pytorch_model.bin",
        "original/model.safetensors",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
        "model.Q4_0.gguf",
    ):
        shutil.copyfile(weights, folder / copy)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_fetched_is_planned_is_loaded(
    fetch, tmp_path: Path, layout: Callable[[Path], set[str]]
) -> None:
    repository = tmp_path / "hub/org/copies"
    weights = layout(repository)
    add_copies(repository, next(repository.glob("*.safetensors")))
    loads = set(TinyModel().shapes())
    with running_mirror(tmp_path / "hub") as mirror:
        source = SourceOptions(endpoint=mirror.url)
        options = PlanOptions("hf://org/copies", EngineConfig(model="m"), source=source)
        found = find(options)
        planned = found.facts
        assert fetch("hf://org/copies", source={"endpoint": mirror.url}) == 0
    assert set(fetch.installed) == {"config.json", *weights}
    assert fetch.message["bytesFetched"] == sum(len(file) for file in fetch.installed.values())

    assert planned.weights.parameters == TinyModel().parameters
    assert found.commit == fetch.message["commit"]
    assert found.bytes_total == fetch.message["bytesTotal"]
    for folder in (repository, fetch.volume / "model"):  # in place (pvc://), and as fetched
        assert read_local(folder) == planned
        source_of_weights = SafetensorsSource(folder)
        assert source_of_weights.names == loads
        loaded_bytes = sum(source_of_weights.tensor(name).whole().nbytes for name in loads)
        plan = make_plan(planned.config, planned.weights, options.engine, "cuda", None)
        assert loaded_bytes == plan.weight_bytes == fetch.message["plan"]["weightBytes"]


def test_shards_without_an_index_are_refused_before_any_byte(fetch, tmp_path: Path) -> None:
    repository = tmp_path / "hub/org/copies"
    sharded(repository)
    (repository / INDEX).unlink()
    with running_mirror(tmp_path / "hub") as mirror:
        assert fetch("hf://org/copies", source={"endpoint": mirror.url}) == 10
        assert mirror.downloads() == ()
    assert fetch.message["reason"] == "UnsupportedModel"
    assert "add the index" in fetch.message["message"]


def test_an_index_of_shards_that_are_not_there_is_refused_before_them(
    fetch, tmp_path: Path
) -> None:
    repository = tmp_path / "hub/org/copies"
    sharded(repository)
    (repository / sorted(SHARDS)[1]).unlink()
    with running_mirror(tmp_path / "hub") as mirror:
        assert fetch("hf://org/copies", source={"endpoint": mirror.url}) == 10
        assert mirror.downloads(".safetensors") == ()
    assert sorted(SHARDS)[1] in fetch.message["message"]


def test_a_bad_index_on_the_volume_is_mended(fetch, mirror, served) -> None:
    """Its size is right, so that only its content tells."""
    assert fetch() == 0
    index = fetch.volume / "model" / INDEX
    index.write_bytes(index.read_bytes().replace(b"-of-00003", b"-of-00004"))
    mirror.clear_log()
    assert fetch() == 0
    assert fetch.installed == served("org/tiny")
    assert [entry.path.rpartition("/")[2] for entry in mirror.downloads()] == [INDEX]
    assert not (fetch.volume / ".staging").exists()
