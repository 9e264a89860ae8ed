"""Config and tensor directory of a model, from kilobytes of it."""

import math
import time
from pathlib import Path

import pytest

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_engine.config import EngineConfig
from quire_engine.errors import ModelCorrupt, ModelMissing
from quire_engine.fetch import PlanOptions, SourceOptions
from quire_engine.fetch.headers import read_dummy, read_local
from quire_engine.fetch.plan_command import find

ENGINE = EngineConfig(model="m")


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_folder_is_counted_to_the_byte(tmp_path: Path, num_shards: int) -> None:
    facts = read_local(write_tiny_model(tmp_path, num_shards=num_shards))
    expected = sum(math.prod(shape) for shape in TinyModel().shapes().values())
    assert facts.weights.parameters == expected
    assert sum(tensor.num_bytes for tensor in facts.weights.tensors) == 2 * expected
    assert read_dummy(tmp_path) == facts


def test_headers_longer_than_the_first_read(tmp_path: Path) -> None:
    model = TinyModel(num_layers=150, hidden_size=16, intermediate_size=16, vocab_size=16)
    facts = read_local(write_tiny_model(tmp_path, model))
    assert facts.weights.parameters == model.parameters


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        read_local(tmp_path)


def test_a_cut_header(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelCorrupt):
        read_local(tmp_path)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_remote_model_by_its_headers_alone(tmp_path: Path, num_shards: int) -> None:
    folder = write_tiny_model(tmp_path / "org/tiny", num_shards=num_shards)
    with running_mirror(tmp_path) as mirror:
        mirror.faults(Faults(status=500, times=1))
        source = SourceOptions(endpoint=mirror.url, backoff_seconds=0.001)
        found = find(PlanOptions("hf://org/tiny", ENGINE, source=source))
        weights = sum(entry.bytes for entry in mirror.downloads(".safetensors"))
    assert found.facts == read_local(folder)
    assert found.bytes_total == sum(path.stat().st_size for path in folder.iterdir())
    assert weights <= num_shards * 64 * 1024


@pytest.mark.parametrize("config", ["{", "[]", '{"architectures": ["LlamaForCausalLM"]}'])
def test_a_config_without_the_shapes(tmp_path: Path, config: str) -> None:
    folder = write_tiny_model(tmp_path / "org/tiny")
    (folder / "config.json").write_text(config)
    with running_mirror(tmp_path) as mirror:
        source = SourceOptions(endpoint=mirror.url, backoff_seconds=0.001)
        for model in (str(folder), "hf://org/tiny"):
            with pytest.raises(ModelCorrupt, match=f"got that of {model}"):
                find(PlanOptions(model, ENGINE, source=source))


@pytest.mark.model
def test_the_real_model_as_safetensors_and_as_gguf() -> None:
    from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, prepare_model

    paths = prepare_model()
    begin = time.monotonic()
    local = read_local(paths.safetensors)
    assert time.monotonic() - begin < 1
    assert (local.weights.parameters, local.weights.dtype) == (134_515_008, "bfloat16")
    gguf = read_local(paths.gguf)
    assert gguf.weights.parameters == local.weights.parameters
    with running_mirror(paths.hub) as mirror:
        source = SourceOptions(endpoint=mirror.url)
        uri = f"hf://{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}"
        assert find(PlanOptions(uri, ENGINE, source=source)).facts == gguf
        assert sum(entry.bytes for entry in mirror.downloads()) < 10_000_000
