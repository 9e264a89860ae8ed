"""What the engine checks of a fetched model before it serves it."""

import hashlib
from pathlib import Path

import msgspec
import pytest

from quire_cluster.tiny_models import write_tiny_model
from quire_engine.errors import ModelCorrupt
from quire_engine.fetch.manifest import (
    Manifest,
    ManifestFile,
    check_model,
    find_manifest,
    verify_file,
)
from quire_engine.fetch.verification import start_verification


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as the fetch leaves it."""
    folder = write_tiny_model(tmp_path / "model", num_shards=2)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    files = tuple(
        ManifestFile(p.name, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted(folder.iterdir())
    )
    manifest = Manifest(
        uri="hf://org/tiny",
        revision="",
        commit="c" * 40,
        files=files,
        bytes_total=sum(file.size for file in files),
    )
    (folder.parent / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def shard(model: Path) -> Path:
    return model / "model-00001-of-00002.safetensors"


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_an_intact_model(model: Path) -> None:
    manifest = check_model(model)
    assert manifest is not None
    assert manifest.commit == "c" * 40
    start_verification(model).wait()


def test_a_file_inside_finds_the_same_manifest(model: Path) -> None:
    found = find_manifest(shard(model))
    assert found is not None
    assert found[0] == model


def test_a_folder_of_the_users_has_nothing_to_check(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "mine")
    assert check_model(folder) is None
    verification = start_verification(folder)
    verification.wait()
    assert verification.done
    with pytest.raises(ModelCorrupt, match="manifest"):
        start_verification(folder, "always")


def test_a_missing_file(model: Path) -> None:
    shard(model).unlink()
    with pytest.raises(ModelCorrupt, match="missing"):
        check_model(model)


def test_a_cut_file(model: Path) -> None:
    shard(model).write_bytes(shard(model).read_bytes()[:-10])
    with pytest.raises(ModelCorrupt, match="bytes in place of"):
        check_model(model)


def test_a_garbled_header(model: Path) -> None:
    flip_byte(shard(model), 9)
    with pytest.raises(ModelCorrupt, match="header"):
        check_model(model)


def test_a_flipped_byte_is_found_by_hashing_alone(model: Path) -> None:
    flip_byte(shard(model), shard(model).stat().st_size // 2)
    assert check_model(model) is not None
    start_verification(model, "never").wait()
    with pytest.raises(ModelCorrupt, match="sha256"):
        start_verification(model, "auto").wait()


def test_waiting_tells_that_bytes_move_within_a_file(model: Path) -> None:
    with (model / "large.bin").open("wb") as file:
        file.truncate(256 << 20)
    write_manifest(model)
    calls: list[None] = []
    start_verification(model).wait(lambda: calls.append(None))
    assert len(calls) > 2 * len(list(model.iterdir()))


def test_one_file_can_be_verified_alone(model: Path) -> None:
    manifest = check_model(model)
    assert manifest is not None
    [entry] = [file for file in manifest.files if file.path == shard(model).name]
    verify_file(shard(model), entry)
    flip_byte(shard(model), 5000)
    with pytest.raises(ModelCorrupt, match="--repair"):
        verify_file(shard(model), entry)


def test_a_garbled_manifest(model: Path) -> None:
    (model.parent / "manifest.json").write_text('{"uri": 3')
    with pytest.raises(ModelCorrupt, match="manifest"):
        check_model(model)
