"""What a source offers: URIs, files with digests, and which of them serving needs. Pure."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, Protocol, TypeAlias

from quire_engine.errors import ConfigError, ModelMissing
from quire_engine.fetch.errors import Corrupt, SourceNotFound, UnsupportedSource
from quire_engine.shards import INDEX, choose_shards

DigestAlgorithm: TypeAlias = Literal["sha256", "git-sha1"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.ASCII)
COMPANIONS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)


class Hasher(Protocol):
    """The part of hashlib's objects that is used."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Digest:
    """What a file's content must hash to. git-sha1 is git's blob id: the hub knows no other
    digest of files outside LFS."""

    algorithm: DigestAlgorithm
    value: str  # lower-case hex

    @property
    def key(self) -> str:
        """A file name for content of this digest."""
        return f"{self.algorithm}-{self.value}"

    def hasher(self, size: int) -> Hasher:
        """A fresh hash for a content of `size` bytes."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit."""

    path: str  # relative, with "/"
    size: int
    digest: Digest


@dataclass(frozen=True)
class Listing:
    """A commit's files, before or after selection."""

    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class HubUri:
    """hf://org/name[/file.gguf]"""

    repo: str
    file: str | None = None


def parse_uri(uri: str) -> HubUri:
    """The parts of a model URI. ConfigError for anything that is none."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme != "hf":
        raise ConfigError(
            f"a model to fetch must be hf://org/name or hf://org/name/file.gguf, got {uri!r}; "
            "models on volumes (pvc://) are served in place, other schemes are not built"
        )
    parts = rest.split("/", 2)
    repo = "/".join(parts[:2])
    file = parts[2] if len(parts) == 3 else None
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(f"hf:// must be followed by org/name, got {uri!r}; take it from the hub")
    if file is not None and (not file.endswith(".gguf") or not is_safe_path(file)):
        raise ConfigError(
            f"a file in an hf:// URI must be a .gguf file of the repository, got {uri!r}; "
            f"leave it out for the safetensors of hf://{repo}"
        )
    return HubUri(repo, file)


def is_safe_path(path: str) -> bool:
    """Whether a name from outside stays inside the folder that it is joined to."""
    parts = path.split("/")
    return (
        bool(path)
        and not PurePosixPath(path).is_absolute()
        and "\\" not in path
        and not any(ord(character) < 32 for character in path)
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def index_of(files: Sequence[RemoteFile], uri: HubUri) -> RemoteFile | None:
    """The index whose content `select` must know; None where the weights have none.

    Raises Corrupt for names that leave the folder: nothing of such a source is to be read.
    """
    for file in files:
        if not is_safe_path(file.path):
            raise Corrupt(
                f"names in {uri.repo} must stay inside the model's folder, got {file.path!r}; "
                "do not use this source"
            )
    if uri.file is not None:
        return None
    return next((file for file in files if file.path == INDEX), None)


def select(
    files: Sequence[RemoteFile], uri: HubUri, index: bytes | None = None
) -> tuple[RemoteFile, ...]:
    """The files that serving needs, small ones first. `index` is the content of `index_of`'s file.

    At the repository's root: config, tokenizer and template files, the shards (shards.py has the
    rule) and their index. With a GGUF file named: that file and the same companions. Everything
    else repeats these weights in another form.

    Raises SourceNotFound for a missing GGUF file, UnsupportedSource when nothing here can be
    served, and what `choose_shards` does.
    """
    weights = _gguf(files, uri) if uri.file is not None else _safetensors(files, uri, index)
    companions = [file for file in files if file.path in COMPANIONS]
    return tuple(sorted({*companions, *weights}, key=lambda file: (file.size, file.path)))


def _gguf(files: Sequence[RemoteFile], uri: HubUri) -> list[RemoteFile]:
    found = [file for file in files if file.path == uri.file]
    if not found:
        offered = [file.path for file in files if file.path.endswith(".gguf")][:8]
        raise SourceNotFound(
            f"{uri.repo} must have the file {uri.file}, got {', '.join(offered) or 'no .gguf'}; "
            "correct the file's name in model.uri"
        )
    if _SPLIT_GGUF.search(found[0].path):
        raise UnsupportedSource(
            f"a GGUF model must be one file, got the split {uri.file}; merge it or take another"
        )
    return found


def _safetensors(files: Sequence[RemoteFile], uri: HubUri, index: bytes | None) -> list[RemoteFile]:
    by_path = {file.path: file for file in files}
    try:
        shards = choose_shards(by_path, index, uri.repo)
    except ModelMissing:
        raise UnsupportedSource(_way_out(by_path, uri)) from None
    if "config.json" not in by_path:
        raise UnsupportedSource(_way_out(by_path, uri))
    return [by_path[path] for path in shards] + [by_path[path] for path in by_path if path == INDEX]


def _way_out(by_path: dict[str, RemoteFile], uri: HubUri) -> str:
    rule = f"{uri.repo} must have config.json and model.safetensors (or its shards)"
    ggufs = sorted(path for path in by_path if path.endswith(".gguf"))
    if ggufs:
        return f"{rule}, got GGUF files; name one of them: hf://{uri.repo}/{ggufs[0]}"
    if any(path.endswith((".bin", ".pth", ".pt")) for path in by_path):
        return f"{rule}, got pickled weights, which are never loaded; convert it to safetensors"
    return f"{rule}, got {', '.join(sorted(by_path)[:8]) or 'no file'}; choose another repository"
