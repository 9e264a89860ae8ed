"""A model's config and tensor directory, from a folder, a .gguf file, or a hub by range reads.

Kilobytes are read, whatever the model's size.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from quire_engine.errors import ModelCorrupt
from quire_engine.memory_plan import TensorFacts, WeightFacts
from quire_engine.models.config import ModelConfig, from_gguf, read_config
from quire_engine.shards import Shards, shards_of, tensors_in

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
    shards = shards_of(model)
    reads = {name: partial(_read_file, model / name) for name in shards}
    return ModelFacts(config, WeightFacts.of(read_tensors(shards, reads), config))


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


def read_tensors(shards: Shards, reads: Mapping[str, ReadRange]) -> list[TensorFacts]:
    """The tensors that loading takes from the shards, eight headers at a time."""

    def taken(name: str) -> list[TensorFacts]:
        header = {tensor.name: tensor for tensor in parse_safetensors(reads[name], name)}
        return [header[tensor] for tensor in tensors_in(name, header, shards[name])]

    with ThreadPoolExecutor(8, thread_name_prefix="headers") as pool:
        return [tensor for tensors in pool.map(taken, shards) for tensor in tensors]


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


def _read_file(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _gguf_facts(file: "GgufFile") -> ModelFacts:
    config = from_gguf(file.metadata, frozenset(file.tensors))
    tensors = [
        TensorFacts(tensor.name, tensor.type_name, math.prod(tensor.shape), tensor.num_bytes)
        for tensor in file.tensors.values()
    ]
    return ModelFacts(config, WeightFacts.of(tensors, config))
