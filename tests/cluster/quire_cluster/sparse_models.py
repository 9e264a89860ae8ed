"""Models of gigabytes that lie in megabytes: for tests of size, memory and speed.

Safetensors whose tensors are holes, but for a few random bytes here and there: with zeros alone a
piece that was never fetched, or that landed in the wrong place, would have the right digest.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

from quire_cluster.hub_repos import Repositories
from quire_cluster.tiny_models import TinyModel, safetensors_header

ORGANIZATION = "quire-tests"
MARK_BYTES = 16 * 1024
MARK_EVERY_BYTES = 16 * 1024**2
_WIDE = TinyModel(hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8)
SMALL = TinyModel(hidden_size=2048, intermediate_size=8192, num_heads=16, num_kv_heads=8)  # 270 MB
TWO_GB = replace(_WIDE, num_layers=5)
EIGHT_GB = replace(_WIDE, num_layers=19)


def prepare(hub: Path, name: str, model: TinyModel, num_shards: int) -> str:
    """Make sure that the mirror's root has this model, hashed; returns its org/name.

    Hashing reads all of it, seconds a gigabyte: once, here, and never in the mirror, which would
    answer nobody meanwhile.
    """
    folder = hub / ORGANIZATION / name
    if not (folder / "config.json").is_file():  # written last
        write_sparse_model(folder, model, num_shards)
    repository = f"{ORGANIZATION}/{name}"
    Repositories(hub).resolve(repository, "main")
    return repository


def write_sparse_model(folder: Path, model: TinyModel, num_shards: int, seed: int = 0) -> Path:
    """Write the weights as holes with marks, in shards, their index and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    names = sorted(model.shapes())
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        part = names[number::num_shards]
        _write_shard(folder / file, {name: model.shapes()[name] for name in part}, chance)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 2 * model.parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(model.config(), indent=1))
    return folder


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], chance: random.Random) -> None:
    header, size = safetensors_header(shapes)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
        for offset in range(len(header), len(header) + size - MARK_BYTES, MARK_EVERY_BYTES):
            file.seek(offset)
            file.write(chance.randbytes(MARK_BYTES))
