"""manifest.json: what a volume holds, and the cheap check that it still does.

It lies beside the folder `model`, is written last, and is the only proof of completeness. The
engine imports this module: no HTTP, no torch.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from quire_engine.errors import ModelCorrupt
from quire_engine.safetensors_header import whole_file_header

MANIFEST = "manifest.json"
MODEL = "model"
_CHUNK_BYTES = 1024**2


class ManifestFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of the model: path relative to model/, bytes, lower-case hex."""

    path: str
    size: int
    sha256: str
    version: str = ""  # which of the source's it was, where the source tells no digest


class PlanSummary(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The part of the memory plan that travels in messages, for one GPU or the CPU. A fetch knows
    no device: it leaves out what depends on one."""

    weight_bytes: int
    kv_bytes_per_token: int
    max_model_len: int
    required_bytes: int | None = None
    kv_blocks: int | None = None
    max_concurrency: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A complete model."""

    version: int = 1
    uri: str
    revision: str  # as asked for; empty for the default
    commit: str
    files: tuple[ManifestFile, ...]
    bytes_total: int
    plan: PlanSummary | None = None


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None when there is none. ModelCorrupt when it is garbled."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ModelCorrupt(
            f"{path} must be a model's manifest, got {error}; run `quire-engine fetch --repair`"
        ) from error
    return manifest if manifest.version == 1 else None


def find_manifest(model: Path) -> tuple[Path, Manifest] | None:
    """The folder model/ that `model` is or lies in, and its manifest; None for models that were
    not fetched by us (a folder of the user's)."""
    path = model.absolute()
    for folder in (path, *path.parents):
        if folder.name == MODEL:
            manifest = read_manifest(folder.parent / MANIFEST)
            if manifest is not None:
                return folder, manifest
    return None


def comes_with(model: Path, adapter: Path) -> bool:
    """Whether a fetch of `model` brings what lies, or should lie, in `adapter`: a folder model/ of
    its own below the same volume's root. By place, as an adapter that is gone has no manifest."""
    found = find_manifest(model)
    if found is None or adapter.name != MODEL:
        return False
    root = found[0].parent
    return adapter.absolute().is_relative_to(root)


def check_model(model: Path) -> Manifest | None:
    """Sizes of all files and the headers of safetensors files, held against the manifest.

    Reads kilobytes, whatever the model's size. Returns the manifest, or None when there is none to
    check against. Raises ModelCorrupt, naming the first bad file.
    """
    found = find_manifest(model)
    if found is None:
        return None
    folder, manifest = found
    for entry in manifest.files:
        _check_size(folder / entry.path, entry)
        if entry.path.endswith(".safetensors"):
            whole_file_header(folder / entry.path)
    return manifest


def _check_size(path: Path, entry: ManifestFile) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _corrupt(path, "it is missing") from None
    if size != entry.size:
        raise _corrupt(path, f"it has {size:,} bytes in place of {entry.size:,}")


def verify_file(
    path: Path, entry: ManifestFile, on_chunk: Callable[[], None] = lambda: None
) -> None:
    """Hash a whole file (about 0.7 s a GB on a core with SHA instructions); ModelCorrupt unless it
    is the one that was fetched. What `on_chunk` raises, once a MiB, ends it early."""
    _check_size(path, entry)
    hasher, chunk = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            on_chunk()
            hasher.update(chunk[:size])
    digest = hasher.hexdigest()
    if digest != entry.sha256:
        raise _corrupt(path, f"its sha256 is {digest[:12]}… in place of {entry.sha256[:12]}…")


def _corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"a model's file must be as it was fetched, got {path}: {what}; "
        "run `quire-engine fetch --repair` on its volume"
    )
