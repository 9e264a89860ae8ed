"""A hub mirror on loopback with two small repositories, and fetches from it."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quire_cluster.hub import RunningMirror, running_mirror
from quire_cluster.tiny_adapters import write_tiny_adapter
from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_engine.fetch import FetchOptions, SourceOptions, run_fetch
from quire_engine.fetch.parts import PartTable

REPO = "org/tiny"
URI = f"hf://{REPO}"
PART_BYTES = 256 * 1024


@dataclass(frozen=True)
class Fetcher:
    """One volume and one mirror; each call is one run of the fetch Job."""

    mirror: RunningMirror
    volume: Path
    termination: Path

    def __call__(self, uri: str = URI, **options: Any) -> int:
        source = {"part_bytes": PART_BYTES, "backoff_seconds": 0.001, "max_attempts": 3}
        source |= {"endpoint": self.mirror.url} | options.pop("source", {})
        return run_fetch(
            FetchOptions(
                uri=uri,
                directory=self.volume,
                source=SourceOptions(**source),
                **options,
            )
        )

    @property
    def message(self) -> dict[str, Any]:
        """The termination message."""
        message: dict[str, Any] = json.loads(self.termination.read_text())
        return message

    @property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.volume / "manifest.json").read_text())
        return manifest

    @property
    def installed(self) -> dict[str, bytes]:
        """Contents of model/, by path."""
        model = self.volume / "model"
        return {
            path.relative_to(model).as_posix(): path.read_bytes()
            for path in model.rglob("*")
            if path.is_file()
        }

    @property
    def staged_bytes(self) -> int:
        """What the part tables and finished files on the volume vouch for. While a fetch runs, a
        file that it finishes during the count is left out of it."""
        return sum(_vouched_bytes(path) for path in self.volume.glob(".staging/blobs/*"))

    def sent(self, suffix: str = "") -> int:
        """Bytes that the mirror gave away of files whose path ends so."""
        return sum(entry.bytes for entry in self.mirror.downloads(suffix))

    def eventually(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for something that another thread or process is about to do."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.005)


def _vouched_bytes(path: Path) -> int:
    try:
        if path.suffix == "":
            return path.stat().st_size
        if path.suffix != ".parts":
            return 0
        size = path.with_suffix(".partial").stat().st_size
        table = PartTable.decode(path.read_bytes(), size)
    except FileNotFoundError:  # renamed to its final name
        return 0
    assert table is not None
    return table.bytes_done


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """org/tiny (three shards), its revision v2 (other config, one other shard), org/other."""
    root = tmp_path_factory.mktemp("hub")
    tiny = write_tiny_model(root / "org/tiny", num_shards=3)
    (tiny / "tokenizer.json").write_text("{}")
    for noise in (
        "README.md",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "original/model.safetensors",
    ):
        (tiny / noise).parent.mkdir(exist_ok=True)
        (tiny / noise).write_bytes(b"noise" * 100)
    (tiny / "consolidated.safetensors").write_bytes(b"the same weights again")
    moved = Path(shutil.copytree(tiny, root / "org/tiny@v2"))
    changed = write_tiny_model(root / "changed", num_shards=3, seed=1)
    shard = "model-00002-of-00003.safetensors"
    shutil.copyfile(changed / shard, moved / shard)
    (moved / "tokenizer.json").write_text('{"version": 2}')
    shutil.rmtree(changed)
    write_tiny_model(root / "org/other", TinyModel(architecture="MambaForCausalLM"))
    _write_adapters(root / "org")
    return root


def _write_adapters(folder: Path) -> None:
    """support with a revision v2, sales with v1 (its main has other weights), dora, and pickled."""
    config = TinyModel().config()
    for name, seed in (("support", 1), ("support@v2", 2), ("sales", 3), ("sales@v1", 4)):
        adapter = write_tiny_adapter(folder / name, config, seed=seed)
        (adapter / "README.md").write_text("noise")
        (adapter / "optimizer.pt").write_bytes(b"noise")
    write_tiny_adapter(folder / "dora", config, use_dora=True)
    pickled = write_tiny_adapter(folder / "pickled", config) / "adapter_model.safetensors"
    pickled.rename(pickled.with_suffix(".bin"))


@pytest.fixture(scope="session")
def _mirror(repositories: Path) -> Iterator[RunningMirror]:
    with running_mirror(repositories) as mirror:
        yield mirror


@pytest.fixture
def mirror(_mirror: RunningMirror) -> Iterator[RunningMirror]:
    """The mirror, healthy and with an empty log."""
    _mirror.faults()
    _mirror.clear_log()
    yield _mirror
    _mirror.faults()


@pytest.fixture
def fetch(mirror: RunningMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    termination = tmp_path / "termination"
    monkeypatch.setenv("TERMINATION_LOG", str(termination))
    volume = tmp_path / "volume"
    volume.mkdir()
    return Fetcher(mirror, volume, termination)


@pytest.fixture
def served(repositories: Path) -> Callable[[str], dict[str, bytes]]:
    """The contents of the files of a repository's folder that serving needs."""

    def contents(folder: str) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in (repositories / folder).iterdir()
            if path.name in ("config.json", "tokenizer.json") or path.name.startswith("model")
        }

    return contents
