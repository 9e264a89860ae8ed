"""The choice of files."""

import pytest

from quire_engine.fetch.errors import Corrupt, SourceNotFound, UnsupportedSource
from quire_engine.fetch.source import (
    Digest,
    RemoteFile,
    index_of,
    select,
)
from quire_engine.fetch.uri import HubUri

REPO = HubUri("org/name")


def listed(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 10, Digest("sha256", f"{i:064x}")) for i, path in enumerate(paths)]


def chosen(*paths: str, uri: HubUri = REPO, index: bytes | None = None) -> set[str]:
    return {file.path for file in select(listed(*paths), uri, index)}


def test_one_file_of_weights() -> None:
    everything = ("config.json", "model.safetensors", "tokenizer.json", "README.md", "x/y.onnx")
    assert chosen(*everything, "pytorch_model.bin", "consolidated.safetensors") == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_shards_win_over_a_duplicate() -> None:
    index, shard = "model.safetensors.index.json", "model-00001-of-00001.safetensors"
    paths = ("config.json", "model.safetensors", index, shard)
    content = b'{"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}'
    assert chosen(*paths, index=content) == {"config.json", index, shard}


def test_only_a_folder_of_weights_has_an_index() -> None:
    files = listed("a.gguf", "model.safetensors.index.json", "sub/model.safetensors.index.json")
    assert index_of(files, REPO) is files[1]
    assert index_of(files, HubUri("org/name", "a.gguf")) is None


def test_small_files_come_first() -> None:
    files = [*listed("model.safetensors", "config.json")]
    files[0] = RemoteFile("model.safetensors", 10**9, files[0].digest)
    assert [file.path for file in select(files, REPO)] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("paths", "advice"),
    [
        (("config.json", "pytorch_model.bin"), "convert it to safetensors"),
        (("model.Q4.gguf",), "hf://org/name/model.Q4.gguf"),
        (("model.safetensors",), "choose another"),
        ((), "no file"),
    ],
)
def test_nothing_to_serve(paths: tuple[str, ...], advice: str) -> None:
    with pytest.raises(UnsupportedSource, match=advice):
        select(listed(*paths), REPO)


def test_a_gguf_file_comes_with_its_companions() -> None:
    uri = HubUri("org/name", "b.gguf")
    assert chosen("a.gguf", "b.gguf", "config.json", "model.safetensors", uri=uri) == {
        "b.gguf",
        "config.json",
    }


def test_a_gguf_file_that_is_not_there() -> None:
    with pytest.raises(SourceNotFound, match=r"a\.gguf"):
        select(listed("a.gguf"), HubUri("org/name", "b.gguf"))


def test_a_split_gguf_is_refused() -> None:
    with pytest.raises(UnsupportedSource, match="merge"):
        select(listed("a-00001-of-00002.gguf"), HubUri("org/name", "a-00001-of-00002.gguf"))


@pytest.mark.parametrize(
    ("path", "most"), [("config.json", 4 << 20), ("model.safetensors.index.json", 32 << 20)]
)
def test_files_that_are_read_into_memory_have_a_bound(path: str, most: int) -> None:
    files = listed("model.safetensors", path)
    files[1] = RemoteFile(path, most, files[1].digest)
    index_of(files, REPO)
    files[1] = RemoteFile(path, most + 1, files[1].digest)
    with pytest.raises(Corrupt, match=rf"{path} of hf://org/name must have at most {most:,} bytes"):
        index_of(files, REPO)


def test_hostile_names_are_refused() -> None:
    with pytest.raises(Corrupt, match="inside"):
        index_of(listed("config.json", "model.safetensors", "../x"), REPO)


def test_gits_digest() -> None:
    """`printf hello | git hash-object --stdin`"""
    hasher = Digest("git-sha1", "").hasher(5)
    hasher.update(b"hello")
    assert hasher.hexdigest() == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
