"""What a source offers: files with digests, and which of them serving needs. Pure."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from quire_engine.adapters import CONFIG as ADAPTER_CONFIG
from quire_engine.adapters import WEIGHTS as ADAPTER_WEIGHTS
from quire_engine.errors import ModelMissing
from quire_engine.fetch.errors import Corrupt, SourceNotFound, UnsupportedSource
from quire_engine.fetch.uri import ModelUri, WebUri, is_safe_path
from quire_engine.shards import INDEX, choose_shards

DigestAlgorithm: TypeAlias = Literal["sha256", "git-sha1", "version"]

_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.ASCII)
MOST_BYTES = {"config.json": 4 * 1024**2, ADAPTER_CONFIG: 4 * 1024**2, INDEX: 32 * 1024**2}
"""Of the files that are read into memory. Configs have kilobytes; the index of a model of 100,000
tensors has 10 MB."""
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
    digest of files outside LFS. version: the source tells no digest; the value names this version
    of this file (its place, size and ETag), and the content hashes to nothing that we know."""

    algorithm: DigestAlgorithm
    value: str  # lower-case hex

    @property
    def key(self) -> str:
        """A file name for content of this digest."""
        return f"{self.algorithm}-{self.value}"

    @property
    def of_content(self) -> bool:
        """Whether content can be held against it."""
        return self.algorithm != "version"

    def hasher(self, size: int) -> Hasher:
        """A fresh hash for a content of `size` bytes."""
        assert self.of_content
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True)
class Location:
    """Where a file's bytes are read."""

    address: str  # a URL, or a key in a bucket
    etag: str = ""  # which answers must carry; empty where the address itself names a version
    offset: int = 0  # of the file's first byte there
    size: int | None = None  # of what lies there; None: the file's own


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit."""

    path: str  # relative, with "/"
    size: int
    digest: Digest
    location: Location = Location("")


@dataclass(frozen=True)
class Listing:
    """A commit's files, before or after selection."""

    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in self.files)


def versioned(path: str, size: int, location: Location, uri: ModelUri) -> RemoteFile:
    """A file of a source that tells no digest: known by its place, size and ETag."""
    known = "\0".join((uri.name, location.address, location.etag, str(location.offset), str(size)))
    digest = Digest("version", hashlib.sha256(known.encode()).hexdigest())
    return RemoteFile(path, size, digest, location)


def listing_of(files: Sequence[RemoteFile], uri: ModelUri, revision: str | None) -> Listing:
    """A listing whose commit is the hash of the files that may be served from.

    Raises SourceNotFound when `revision` is given and is not that one.
    """
    counted = sorted(
        (file.path, file.digest.value)
        for file in files
        if file.path in COMPANIONS
        or file.path in (INDEX, ADAPTER_CONFIG, uri.file)
        or _is_shard(file.path, uri)
    )
    commit = hashlib.sha256(repr(counted).encode()).hexdigest()[:40]
    if revision is not None and revision != commit:
        raise SourceNotFound(
            f"{uri.name} has one revision, what lies there now ({commit}), got {revision!r}; "
            "remove model.revision, or set it to that one to be told when it changes"
        )
    return Listing(commit, tuple(files))


def _is_shard(path: str, uri: ModelUri) -> bool:
    return uri.file is None and path.endswith(".safetensors") and "/" not in path


def index_of(files: Sequence[RemoteFile], uri: ModelUri) -> RemoteFile | None:
    """The index whose content `select` must know; None where the weights have none.

    Raises Corrupt for names that leave the folder and for files that are too long to be what they
    are called: nothing of such a source is to be read.
    """
    for file in files:
        if not is_safe_path(file.path):
            raise Corrupt(
                f"names in {uri.name} must stay inside the model's folder, got {file.path!r}; "
                "do not use this source"
            )
    if uri.file is not None:
        return None
    _require_short(files, uri)
    return next((file for file in files if file.path == INDEX), None)


def _require_short(files: Sequence[RemoteFile], uri: ModelUri) -> None:
    for file in files:
        if file.size > MOST_BYTES.get(file.path, file.size):
            raise Corrupt(
                f"{file.path} of {uri.name} must have at most {MOST_BYTES[file.path]:,} bytes, got "
                f"{file.size:,}; put the model's own in its place"
            )


def select(
    files: Sequence[RemoteFile], uri: ModelUri, index: bytes | None = None
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


def select_adapter(files: Sequence[RemoteFile], uri: ModelUri) -> tuple[RemoteFile, ...]:
    """The files of a LoRA adapter: its config and its weights, and nothing else.

    Raises UnsupportedSource where one of them is not there, Corrupt where its config is too long.
    """
    _require_short(files, uri)
    by_path = {file.path: file for file in files}
    wanted = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    if all(path in by_path for path in wanted):
        return tuple(by_path[path] for path in wanted)
    raise UnsupportedSource(
        f"the adapter {uri.name} must have {' and '.join(wanted)}, got "
        f"{', '.join(sorted(by_path)[:8]) or 'no file'}; save it with save_pretrained, as "
        "safetensors"
    )


def _gguf(files: Sequence[RemoteFile], uri: ModelUri) -> list[RemoteFile]:
    found = [file for file in files if file.path == uri.file]
    if not found:
        offered = [file.path for file in files if file.path.endswith(".gguf")][:8]
        raise SourceNotFound(
            f"{uri.name} must have the file {uri.file}, got {', '.join(offered) or 'no .gguf'}; "
            "correct the file's name in model.uri"
        )
    if _SPLIT_GGUF.search(found[0].path):
        raise UnsupportedSource(
            f"a GGUF model must be one file, got the split {uri.file}; merge it or take another"
        )
    return found


def _safetensors(
    files: Sequence[RemoteFile], uri: ModelUri, index: bytes | None
) -> list[RemoteFile]:
    by_path = {file.path: file for file in files}
    try:
        shards = choose_shards(by_path, index, uri.name)
    except ModelMissing:
        raise UnsupportedSource(_way_out(by_path, uri)) from None
    if "config.json" not in by_path:
        raise UnsupportedSource(_way_out(by_path, uri))
    return [by_path[path] for path in shards] + [by_path[path] for path in by_path if path == INDEX]


def _way_out(by_path: dict[str, RemoteFile], uri: ModelUri) -> str:
    rule = f"{uri.name} must have config.json and model.safetensors (or its shards)"
    ggufs = sorted(path for path in by_path if path.endswith(".gguf"))
    if ggufs and isinstance(uri, WebUri):
        return f"{rule}, got GGUF files; offer {ggufs[0]} by an address of its own"
    if ggufs:
        return f"{rule}, got GGUF files; name one of them: {uri.name}/{ggufs[0]}"
    if any(path.endswith((".bin", ".pth", ".pt")) for path in by_path):
        return f"{rule}, got pickled weights, which are never loaded; convert it to safetensors"
    return f"{rule}, got {', '.join(sorted(by_path)[:8]) or 'no file'}; choose another repository"
