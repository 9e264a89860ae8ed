"""Config and tensor directory of a model, from kilobytes of it."""

import math
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, ModelPaths
from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_engine import gguf_header
from quire_engine.config import EngineConfig
from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported
from quire_engine.fetch import PlanOptions, SourceOptions
from quire_engine.fetch.headers import read_local, read_remote_gguf
from quire_engine.fetch.plan_command import find

ENGINE = EngineConfig(model="m")


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_folder_is_counted_to_the_byte(tmp_path: Path, num_shards: int) -> None:
    facts = read_local(write_tiny_model(tmp_path, num_shards=num_shards))
    expected = sum(math.prod(shape) for shape in TinyModel().shapes().values())
    assert facts.weights.parameters == expected
    assert sum(tensor.num_bytes for tensor in facts.weights.tensors) == 2 * expected
    assert read_local(tmp_path, "dummy") == facts


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


def write_gguf(path: Path, model: TinyModel, *, without: str = "") -> int:
    """A GGUF with a vocabulary in its header; returns the header's length."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.max_model_len)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_token_list([f"token {number}" for number in range(model.vocab_size)])
    writer.add_custom_alignment(64)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.num_layers)
    for name, shape in model.shapes().items():
        if name != without:
            known = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(known, np.ones(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(int(tensor.data_offset) for tensor in gguf.GGUFReader(path).tensors)


GGUF_MODEL = TinyModel(hidden_size=32, intermediate_size=32, vocab_size=50)


def test_a_gguf_header_of_any_length_is_read_and_little_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the first read ends: in a number, a text, the vocabulary, the directory."""
    path = tmp_path / "m.gguf"
    header, local = write_gguf(path, GGUF_MODEL), read_local(path)
    assert local.weights.parameters == GGUF_MODEL.parameters
    content = path.read_bytes()
    for first in range(24, header + 8, 7):  # the counts stand in the first 24 bytes
        read: list[int] = []

        def spy(start: int, stop: int, read: list[int] = read) -> bytes:
            read.append(stop)
            return content[start:stop]

        monkeypatch.setattr(gguf_header, "FIRST_READ", first)
        assert read_remote_gguf(spy, "m.gguf", len(content)) == local
        assert read[-1] < max(2 * header, first + 1)


def test_a_gguf_without_one_of_its_tensors_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = TinyModel(hidden_size=256, vocab_size=8192)  # 8 MiB of weights: two reads
    write_gguf(path, model, without="model.norm.weight")
    content, read = path.read_bytes(), []

    def spy(start: int, stop: int) -> bytes:
        read.append(stop)
        return content[start:stop]

    with pytest.raises(ModelUnsupported, match=r"model\.norm\.weight"):
        read_remote_gguf(spy, "m.gguf", len(content))
    assert read == [gguf_header.FIRST_READ]


def test_of_a_file_that_is_no_gguf_the_beginning_is_read(tmp_path: Path) -> None:
    (tmp_path / "org/tiny").mkdir(parents=True)
    with (tmp_path / "org/tiny/m.gguf").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(256 << 20)
    with running_mirror(tmp_path) as mirror:
        source = SourceOptions(endpoint=mirror.url, backoff_seconds=0.001)
        with pytest.raises(ModelCorrupt, match=r"must begin with b'GGUF', got b'PK.*name another"):
            find(PlanOptions("hf://org/tiny/m.gguf", ENGINE, source=source))
        assert sum(entry.bytes for entry in mirror.downloads(".gguf")) <= gguf_header.FIRST_READ


def test_a_gguf_is_planned_without_numpy(tmp_path: Path) -> None:
    """Importing it takes as long as all the rest of such a plan."""
    write_gguf(tmp_path / "m.gguf", GGUF_MODEL)
    code = f"""if True:
        import sys
        from pathlib import Path
        from quire_engine import cli
        from quire_engine.fetch.headers import read_local

        read_local(Path({str(tmp_path / "m.gguf")!r}))
        sys.exit("numpy" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_gguf_that_does_not_tell_its_shapes_is_unsupported(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelUnsupported, match=r"tell the model's shapes.*llama\.attention\.head"):
        read_local(tmp_path / "m.gguf")


@pytest.mark.model
def test_the_real_model_as_safetensors_and_as_gguf(smollm: ModelPaths) -> None:
    begin = time.monotonic()
    local = read_local(smollm.safetensors)
    assert time.monotonic() - begin < 1
    assert (local.weights.parameters, local.weights.dtype) == (134_515_008, "bfloat16")
    gguf = read_local(smollm.gguf)
    assert gguf.weights.parameters == local.weights.parameters
    with running_mirror(smollm.hub) as mirror:
        source = SourceOptions(endpoint=mirror.url)
        uri = f"hf://{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}"
        assert find(PlanOptions(uri, ENGINE, source=source)).facts == gguf
        assert sum(entry.bytes for entry in mirror.downloads()) < 10_000_000
