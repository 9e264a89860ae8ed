"""The repo's two images, and the tags that their content gives them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from quire_cluster.errors import ClusterError
from quire_cluster.layout import Layout
from quire_cluster.provider import Image

_COMMON = (
    "LICENSE",
    "pyproject.toml",
    "requirements/bootstrap.txt",
    "requirements/build.txt",
)
ENGINE = Image(
    name="quire-engine",
    dockerfile="Dockerfile.engine",
    inputs=(
        *_COMMON,
        "Dockerfile.engine",
        "requirements/engine.txt",
        "hatch_build.py",
        "engine",
        "kernels",
    ),
)
OPERATOR = Image(
    name="quire-operator",
    dockerfile="Dockerfile.operator",
    inputs=(
        *_COMMON,
        "Dockerfile.operator",
        "requirements/operator.txt",
        "operator",
    ),
)
IMAGES = (OPERATOR, ENGINE)
_TIME_STAMP = 1_700_000_000

# Made from the sources, or beside them: no input of a build (.dockerignore says the same).
_IGNORED_FOLDERS = frozenset({"__pycache__", "_lib", ".mypy_cache", ".ruff_cache"})
_IGNORED_SUFFIXES = frozenset({".pyc", ".pyo", ".so", ".md"})


def content_tag(root: Path, inputs: Iterable[str], salt: str = "") -> str:
    """`sha-` and twelve hex digits over the paths, modes and bytes of the inputs, and over `salt`
    (whatever else decides the image, such as its base).

    Raises ClusterError when an input is not there.
    """
    digest = hashlib.sha256(salt.encode())
    for path in sorted(_files(root, inputs)):
        executable = os.access(path, os.X_OK)
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{executable}\0{len(content)}\0".encode())
        digest.update(content)
    return f"sha-{digest.hexdigest()[:12]}"  # without a letter `helm --set` may see a number


def stage(root: Path, inputs: Iterable[str], folder: Path) -> None:
    """Copy the inputs, and nothing else, to `folder`, all with one time stamp: builders tell layers
    apart by it, and a fresh clone has the same layers as the old one."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in _files(root, inputs):
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (_TIME_STAMP, _TIME_STAMP))


def _files(root: Path, inputs: Iterable[str]) -> Iterator[Path]:
    for name in inputs:
        path = root / name
        if path.is_dir():
            yield from _tree(path)
        elif path.is_file():
            yield path
        else:
            raise ClusterError(f"an image needs {name}, which is not in {root}")


def _tree(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        ignored = _IGNORED_FOLDERS.intersection(path.relative_to(folder).parts)
        if path.is_file() and not ignored and path.suffix not in _IGNORED_SUFFIXES:
            yield path


def record(layout: Layout, image: Image, reference: str) -> None:
    """Remember what was published last, for `exec` and for the kubelet's reference."""
    references = {**published(layout), image.name: reference}
    staged = layout.images_record.with_suffix(".tmp")
    staged.write_text(json.dumps(references, indent=1, sort_keys=True) + "\n")
    staged.replace(layout.images_record)


def published(layout: Layout) -> dict[str, str]:
    """Image name → reference of what `images` published last; empty before its first run."""
    try:
        return dict(json.loads(layout.images_record.read_text()))
    except FileNotFoundError:
        return {}


def image_environment(layout: Layout) -> Mapping[str, str]:
    """QUIRE_ENGINE_IMAGE and QUIRE_OPERATOR_IMAGE, as far as they have been published."""
    variables = {ENGINE.name: "QUIRE_ENGINE_IMAGE", OPERATOR.name: "QUIRE_OPERATOR_IMAGE"}
    return {variables[name]: reference for name, reference in published(layout).items()}
