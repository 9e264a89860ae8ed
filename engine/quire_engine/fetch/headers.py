"""A model's config and tensor directory, from a folder, a .gguf file, or a hub by range reads.

Kilobytes are read, whatever the model's size.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quire_engine.adapters import CONFIG, WEIGHTS, AdapterFacts
from quire_engine.errors import ModelCorrupt, ModelMissing
from quire_engine.gguf_names import hugging_face_name
from quire_engine.models.config import ModelConfig, from_gguf, read_config
from quire_engine.models.shapes import expected_shapes
from quire_engine.safetensors_header import ReadRange, TensorEntry, whole_file_header
from quire_engine.shards import Shards, shards_of, tensors_in
from quire_engine.weight_facts import TensorFacts, WeightFacts

if TYPE_CHECKING:
    from quire_engine.gguf import GgufFile

GGUF_FIRST_READ = 4 * 1024**2  # a vocabulary of 128k tokens


@dataclass(frozen=True)
class ModelFacts:
    """What a memory plan starts from."""

    config: ModelConfig
    weights: WeightFacts


def read_local(model: Path) -> ModelFacts:
    """The facts of a folder or a .gguf file. ModelMissing, ModelCorrupt or ModelUnsupported."""
    if model.suffix == ".gguf":
        return _read_gguf(model)
    config = read_config(model)
    tensors = read_tensors(shards_of(model), lambda file: whole_file_header(model / file).tensors)
    return ModelFacts(config, WeightFacts.of(tensors, config))


def read_local_adapter(folder: Path, model: ModelConfig) -> AdapterFacts:
    """The facts of a LoRA adapter's folder. ModelMissing, ModelCorrupt or ModelUnsupported."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelMissing(
                f"an adapter must be a folder with {CONFIG} and {WEIGHTS}, got {folder} without "
                f"{name}; fetch it there first, and save weights as safetensors"
            )
    header = whole_file_header(folder / WEIGHTS)
    return AdapterFacts.of((folder / CONFIG).read_bytes(), header.tensors, model, str(folder))


def read_dummy(model: Path) -> ModelFacts:
    """The facts of a folder's config.json with random bfloat16 weights (--load-format dummy)."""
    config = read_config(model)
    sizes = {name: math.prod(shape) for name, shape in expected_shapes(config).items()}
    tensors = tuple(TensorFacts(name, "BF16", size, 2 * size) for name, size in sizes.items())
    return ModelFacts(config, WeightFacts(tensors))


def read_tensors(
    shards: Shards, header_of: Callable[[str], Mapping[str, TensorEntry]]
) -> list[TensorFacts]:
    """The tensors that loading takes from the shards, eight headers at a time."""

    def taken(file: str) -> list[TensorFacts]:
        header = header_of(file)
        return [_facts(name, header[name]) for name in tensors_in(file, header, shards[file])]

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
            if have == size:
                return _read_gguf(path)  # says what is wrong
            header = _whole_header(path, have)
            if header is not None:
                return _gguf_facts(header)
            want = min(have * 2, size)


def _whole_header(path: Path, have: int) -> "GgufFile | None":
    """The file, if its header ends within the `have` bytes that were read.

    What was not read is zeros, and those parse: as empty names of tensors without values. So where
    the parser came to an end says whether there is anything to be made of what it found.
    """
    from quire_engine.gguf import GgufFile  # numpy, a fifth of a second: for GGUF only

    try:
        file = GgufFile.open(path)
    except ModelCorrupt:
        return None
    begin = min((tensor.offset for tensor in file.tensors.values()), default=0)
    return file if begin <= have else None


def _read_gguf(path: Path) -> ModelFacts:
    from quire_engine.gguf import GgufFile

    return _gguf_facts(GgufFile.open(path))


def _facts(name: str, tensor: TensorEntry) -> TensorFacts:
    start, stop = tensor.data_offsets
    return TensorFacts(name, tensor.dtype, math.prod(tensor.shape), stop - start)


def _gguf_facts(file: "GgufFile") -> ModelFacts:
    config = from_gguf(file.metadata, frozenset(file.tensors))
    tensors = [
        TensorFacts(
            hugging_face_name(tensor.name),
            tensor.type_name,
            math.prod(tensor.shape),
            tensor.num_bytes,
        )
        for tensor in file.tensors.values()
    ]
    return ModelFacts(config, WeightFacts.of(tensors, config))
