"""Models that lie in less than they hold."""

import json
from pathlib import Path

from quire_cluster.hub_repos import Repositories
from quire_cluster.sparse_models import prepare
from quire_cluster.tiny_models import TinyModel
from quire_engine.safetensors_header import whole_file_header

MODEL = TinyModel(hidden_size=512, vocab_size=32768)


def test_the_shards_are_whole_models_in_holes(tmp_path: Path) -> None:
    repository = prepare(tmp_path, "sparse", MODEL, num_shards=2)
    folder = tmp_path / repository
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shapes, size = {}, 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = whole_file_header(file).tensors
        assert {index["weight_map"][name] for name in tensors} == {file.name}
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        size += file.stat().st_size
        assert file.stat().st_blocks * 512 < file.stat().st_size / 10
        assert any(file.read_bytes()[-16 * 1024**2 :]), "not only zeros: those look all the same"
    assert shapes == MODEL.shapes()
    assert size > 2 * MODEL.parameters


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    repository = prepare(tmp_path, "sparse", MODEL, num_shards=2)
    before = Repositories(tmp_path).resolve(repository, "main")
    assert prepare(tmp_path, "sparse", MODEL, num_shards=2) == repository
    assert Repositories(tmp_path).resolve(repository, "main") == before
