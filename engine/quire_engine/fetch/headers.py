"""A model's config and tensor directory, from a folder, a .gguf file, or a hub by range reads.

Kilobytes are read, whatever the model's size.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from quire_engine.errors import ModelCorrupt, ModelMissing
from quire_engine.fetch.source import INDEX
from quire_engine.memory_plan import TensorFacts, WeightFacts
from quire_engine.models.config import ModelConfig, from_gguf, read_config

if TYPE_CHECKING:
    from quire_engine.gguf import GgufFile

FIRST_READ = 64 * 1024  # holds the headers of most shards
GGUF_FIRST_READ = 4 * 1024**2  # a vocabulary of 128k tokens
LONGEST_HEADER = 100 * 1024**2  # safetensors' own limit

ReadRange = Callable[[int, int], bytes]  # [start, stop) of a file, clipped to its end


@dataclass(frozen=True)
class ModelFacts:
    """What a memory plan starts from."""

    config: ModelConfig
    weights: WeightFacts


class _Tensor(msgspec.Struct, frozen=True):
    """An entry of a safetensors header (https://huggingface.co/docs/safetensors)."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_local(model: Path) -> ModelFacts:
    """The facts of a folder or a .gguf file. ModelMissing, ModelCorrupt or ModelUnsupported."""
    if model.suffix == ".gguf":
        return _read_gguf(model)
    config = read_config(model)
    tensors = [tensor for shard in shards_of(model) for tensor in _read_shard(shard)]
    return ModelFacts(config, WeightFacts.of(tensors, config))


def shards_of(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`: those of its index, else
    model.safetensors."""
    index = folder / INDEX
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise ModelMissing(
                f"a model folder must hold model.safetensors or its index, got {folder}; "
                "fetch the model there first"
            )
        return [single]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(f"{index} must map tensors to files, got {error!r}") from error
    return [folder / name for name in names]


def parse_safetensors(read: ReadRange, name: str) -> Iterator[TensorFacts]:
    """The tensors of a safetensors file, by one read or two."""
    first = read(0, FIRST_READ)
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= length <= LONGEST_HEADER:
        raise ModelCorrupt(f"{name} must begin with a safetensors header; fetch the model again")
    header = first[8 : 8 + length]
    if len(header) < length:
        header += read(8 + len(header), 8 + length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        for key, raw in entries.items():
            tensor = msgspec.json.decode(raw, type=_Tensor)
            start, stop = tensor.data_offsets
            yield TensorFacts(key, tensor.dtype, math.prod(tensor.shape), stop - start)
    except msgspec.MsgspecError as error:
        raise ModelCorrupt(
            f"{name} must have a whole safetensors header, got {error}; fetch the model again"
        ) from error


def read_remote_safetensors(shards: Mapping[str, ReadRange]) -> list[TensorFacts]:
    """The tensors of remote shards, eight headers at a time."""
    with ThreadPoolExecutor(8, thread_name_prefix="headers") as pool:
        lists = pool.map(lambda item: list(parse_safetensors(item[1], item[0])), shards.items())
        return [tensor for tensors in lists for tensor in tensors]


def read_remote_gguf(read: ReadRange, name: str, size: int) -> ModelFacts:
    """The facts of a remote GGUF file.

    Its header's length is known only once it is parsed, so a sparse file of the true size is given
    more and more of the beginning, until the first tensor lies beyond what was read.
    """
    with tempfile.TemporaryDirectory(prefix="quire-plan-") as folder:
        path = Path(folder) / Path(name).name
        have, want = 0, min(GGUF_FIRST_READ, size)
        while True:
            with path.open("r+b" if have else "wb") as file:
                file.truncate(size)
                file.seek(have)
                file.write(read(have, want))
            have = want
            facts, begin = _try_gguf(path)
            if facts is not None and (begin <= have or have == size):
                return facts
            if have == size:
                return _read_gguf(path)  # says what is wrong
            want = min(have * 2, size)


def _try_gguf(path: Path) -> tuple[ModelFacts | None, int]:
    from quire_engine.gguf import GgufFile  # numpy, a fifth of a second: for GGUF only

    try:
        file = GgufFile.open(path)
        begin = min((tensor.offset for tensor in file.tensors.values()), default=0)
        return _gguf_facts(file), begin
    except (ModelCorrupt, ValueError, KeyError):
        return None, 0


def _read_gguf(path: Path) -> ModelFacts:
    from quire_engine.gguf import GgufFile

    return _gguf_facts(GgufFile.open(path))


def _read_shard(path: Path) -> Iterator[TensorFacts]:
    def read(start: int, stop: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    if not path.is_file():
        raise ModelMissing(f"{path} is named by the model's index and must exist; fetch it again")
    return parse_safetensors(read, str(path))


def _gguf_facts(file: "GgufFile") -> ModelFacts:
    config = from_gguf(file.metadata, frozenset(file.tensors))
    tensors = [
        TensorFacts(tensor.name, tensor.type_name, math.prod(tensor.shape), tensor.num_bytes)
        for tensor in file.tensors.values()
    ]
    return ModelFacts(config, WeightFacts.of(tensors, config))
