"""Which files hold a safetensors model's weights: one rule for the fetch, the plan and the loader.

model.safetensors.index.json names them; without it they are model.safetensors; without that the
one *.safetensors file there is. All of them lie beside config.json. Whatever else a repository
carries (original/, onnx/, *.bin, consolidated*.safetensors) is the same weights in another form.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from quire_engine.errors import ModelCorrupt, ModelMissing, ModelUnsupported

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Mistral's own tensor names, and a LoRA's: never what the config beside them describes.
NO_MODEL = ("consolidated", "adapter")

Shards: TypeAlias = Mapping[str, frozenset[str] | None]
"""File names, and the tensors that the index puts into each. None: all that its header lists."""


class _Index(msgspec.Struct, frozen=True):
    """The part of the index that is needed."""

    weight_map: dict[str, str]  # the file of each tensor


def shards_of(folder: Path) -> Shards:
    """The shards in `folder`. ModelMissing, ModelCorrupt or ModelUnsupported, as below."""
    names = {path.name for path in folder.glob("*") if path.is_file()}
    index = (folder / INDEX).read_bytes() if INDEX in names else None
    return choose_shards(names, index, str(folder))


def choose_shards(names: Collection[str], index: bytes | None, where: str) -> Shards:
    """The shards among the files `names` of `where`; `index` is the content of INDEX, if there.

    Raises ModelMissing when there are no weights, ModelUnsupported when nothing says which of
    several they are, and ModelCorrupt for an index that is garbled or names what is not there.
    """
    assert (INDEX in names) == (index is not None)
    if index is not None:
        return _indexed(names, index, where)
    if SINGLE in names:
        return {SINGLE: None}
    found = sorted(name for name in names if _may_be_weights(name))
    if len(found) == 1:
        return {found[0]: None}
    rule = f"{where} must hold {INDEX}, {SINGLE} or one other *.safetensors file"
    if not found:
        raise ModelMissing(f"{rule}, got none; fetch the model there first")
    raise ModelUnsupported(
        f"{rule}, got {len(found)} without an index ({', '.join(found[:4])}); add the index, or "
        "keep only the file that is meant"
    )


def tensors_in(file: str, header: Collection[str], promised: frozenset[str] | None) -> list[str]:
    """The tensors to take from a shard with these in its header. ModelCorrupt if one is missing."""
    missing = sorted((promised or frozenset()).difference(header))
    if missing:
        raise ModelCorrupt(
            f"a shard must hold the tensors that the index promises, got {file} without "
            f"{missing[0]}; fetch the model again"
        )
    return [name for name in header if promised is None or name in promised]


def _indexed(names: Collection[str], index: bytes, where: str) -> Shards:
    try:
        weight_map = msgspec.json.decode(index, type=_Index).weight_map
    except msgspec.MsgspecError as error:
        raise _corrupt(where, f"it has no whole weight_map ({error})") from error
    if not weight_map:
        raise _corrupt(where, "its weight_map is empty")
    tensors: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        tensors.setdefault(file, set()).add(tensor)
    for file in sorted(tensors):
        if "/" in file or not file.endswith(".safetensors"):
            raise _corrupt(where, f"it names {file!r}, which is no *.safetensors file beside it")
        if file not in names:
            raise _corrupt(where, f"it names {file}, which is not there")
    return {file: frozenset(tensors[file]) for file in sorted(tensors)}


def _may_be_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name and not name.startswith(NO_MODEL)


def _corrupt(where: str, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"a model's index must name its files, got {INDEX} in {where}: {what}; fetch the model "
        "again"
    )
