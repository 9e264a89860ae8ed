"""A model's config and tensor directory, from a folder, a .gguf file, or a source by range reads.

Kilobytes are read, whatever the model's size. `serve`, `plan` and the loader ask here, so that the
three mean the same model.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quire_engine.adapters import CONFIG, WEIGHTS, AdapterFacts
from quire_engine.config import LoadFormat
from quire_engine.errors import ModelMissing, ModelUnsupported
from quire_engine.gguf_header import GgufHeader, map_gguf, read_gguf_header
from quire_engine.gguf_names import hugging_face_name
from quire_engine.models.config import ModelConfig, from_gguf, read_config
from quire_engine.models.shapes import expected_shapes
from quire_engine.safetensors_header import ReadRange, TensorEntry, whole_file_header
from quire_engine.shards import Shards, shards_of, tensors_in
from quire_engine.weight_facts import TensorFacts, WeightFacts


@dataclass(frozen=True)
class ModelFacts:
    """What a memory plan starts from."""

    config: ModelConfig
    weights: WeightFacts


def read_model_config(model: Path) -> ModelConfig:
    """The config of a folder or a .gguf file. ModelMissing, ModelCorrupt or ModelUnsupported."""
    if model.suffix == ".gguf":
        return gguf_config(map_gguf(model)[0], str(model))
    return read_config(model)


def read_local(model: Path, load_format: LoadFormat = "auto") -> ModelFacts:
    """The facts of a folder or a .gguf file. ModelMissing, ModelCorrupt or ModelUnsupported."""
    if model.suffix == ".gguf":
        return gguf_facts(map_gguf(model)[0], str(model), load_format)

    def stored() -> Iterable[TensorFacts]:
        return read_tensors(shards_of(model), lambda file: whole_file_header(model / file).tensors)

    return facts_of(read_config(model), load_format, stored)


def read_remote_gguf(
    read: ReadRange, name: str, size: int, load_format: LoadFormat = "auto"
) -> ModelFacts:
    """The facts of a GGUF file of `size` bytes at a source. ModelCorrupt or ModelUnsupported."""
    return gguf_facts(read_gguf_header(read, size, name), name, load_format)


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


def facts_of(
    config: ModelConfig, load_format: LoadFormat, stored: Callable[[], Iterable[TensorFacts]]
) -> ModelFacts:
    """The facts of a model that keeps the tensors `stored()`. dummy asks for none of them: its
    random weights are bfloat16 of the shapes that the config says."""
    if load_format != "dummy":
        return ModelFacts(config, WeightFacts.of(stored(), config))
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


def gguf_config(header: GgufHeader, file: str) -> ModelConfig:
    """The config in a GGUF's header. ModelUnsupported where it does not tell the model's shapes."""
    try:
        return from_gguf(header.metadata, header.tensors.keys())
    except (KeyError, ValueError) as error:
        raise ModelUnsupported(
            f"a GGUF's metadata must tell the model's shapes, got that of {file}: {error}; choose "
            "another GGUF of this model"
        ) from error


def gguf_facts(header: GgufHeader, file: str, load_format: LoadFormat) -> ModelFacts:
    """The facts of the GGUF file of this header."""
    tensors = (
        TensorFacts(
            hugging_face_name(tensor.name),
            tensor.type_name,
            math.prod(tensor.shape),
            tensor.num_bytes,
        )
        for tensor in header.tensors.values()
    )
    return facts_of(gguf_config(header, file), load_format, lambda: tensors)


def _facts(name: str, tensor: TensorEntry) -> TensorFacts:
    start, stop = tensor.data_offsets
    return TensorFacts(name, tensor.dtype, math.prod(tensor.shape), stop - start)
