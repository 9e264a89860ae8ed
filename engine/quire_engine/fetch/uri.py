"""Model URIs and what their parts mean. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from quire_engine.errors import ConfigError
from quire_engine.redaction import MARK

ObjectScheme: TypeAlias = Literal["s3", "gs", "az"]

FORMS = (
    "hf://org/name, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, one "
    ".gguf file below one of these, or https://host/path to a .gguf or .tar file"
)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_HOST = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)(:\d{1,5})?", re.ASCII)


@dataclass(frozen=True)
class HubUri:
    """hf://org/name[/file.gguf]"""

    repo: str
    file: str | None = None

    @property
    def name(self) -> str:
        """The place, for people: without the file."""
        return f"hf://{self.repo}"


@dataclass(frozen=True)
class ObjectUri:
    """s3://bucket[/prefix][/file.gguf], and gs:// and az:// in the same form."""

    scheme: ObjectScheme
    bucket: str
    prefix: str  # without slashes at its ends; empty for the whole bucket
    file: str | None = None

    @property
    def name(self) -> str:
        """The place, for people: without the file."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


@dataclass(frozen=True)
class WebUri:
    """https://host/path of one .gguf file, or of an archive of a model's folder."""

    url: str
    file: str | None = None  # None: an archive

    @property
    def name(self) -> str:
        """The place, for people: the folder of a file, or the archive itself."""
        return self.url if self.file is None else self.url.rpartition("/")[0]

    @property
    def basename(self) -> str:
        return self.url.rpartition("/")[2]


ModelUri: TypeAlias = HubUri | ObjectUri | WebUri


def parse_uri(uri: str) -> ModelUri:
    """The parts of a model URI. ConfigError for anything that is none."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "hf":
        return _hub(uri, rest)
    if separator and scheme in ("s3", "gs", "az"):
        return _object(uri, scheme, rest)  # type: ignore[arg-type]
    if separator and scheme == "https":
        return _web(uri, rest)
    raise ConfigError(
        f"a model to fetch must be {FORMS}, got {shown(uri)!r}; models on volumes (pvc://) are "
        "served in place, and http:// is not fetched from: nothing would prove whose bytes they are"
    )


def web_host(uris: Iterable[str]) -> str | None:
    """Whom the credentials for https:// are meant for: the host of the first such address."""
    hosts = (urlsplit(uri).netloc for uri in uris if uri.startswith("https://"))
    return next(hosts, None)


def refuse_login(text: str) -> None:
    """Before a # cuts a password in two, and half of it is shown. ConfigError."""
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            f"an adapter's address must hold no user and password, got {shown(text)!r}; give "
            "credentials by the environment"
        )


def parse_adapter_uri(text: str) -> tuple[ModelUri, str | None]:
    """An adapter's URI and, behind a #, its revision. ConfigError for anything that is none."""
    refuse_login(text)
    place, mark, revision = text.partition("#")
    uri = parse_uri(place)
    if uri.file is not None or (mark and not revision):
        raise ConfigError(
            "an adapter must be URI or URI#REVISION of a folder (of a .tar for https://), got "
            f"{shown(text)!r}; adapters are read from safetensors, not from GGUF"
        )
    return uri, revision or None


def _hub(uri: str, rest: str) -> HubUri:
    parts = rest.split("/", 2)
    repo = "/".join(parts[:2])
    file = parts[2] if len(parts) == 3 else None
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(
            f"hf:// must be followed by org/name, got {shown(uri)!r}; take it from the hub"
        )
    if file is not None and (not file.endswith(".gguf") or not is_safe_path(file)):
        raise ConfigError(
            f"a file in an hf:// URI must be a .gguf file of the repository, got {shown(uri)!r}; "
            f"leave it out for the safetensors of hf://{repo}"
        )
    return HubUri(repo, file)


def _object(uri: str, scheme: ObjectScheme, rest: str) -> ObjectUri:
    bucket, _, path = rest.partition("/")
    path = path.removesuffix("/")
    if not _BUCKET.fullmatch(bucket) or (path and not is_safe_path(path)):
        raise ConfigError(
            f"{scheme}:// must be followed by {'container' if scheme == 'az' else 'bucket'}/prefix,"
            f" got {shown(uri)!r}; endpoint, region and keys come from model.credentialsSecret"
        )
    if not path.endswith(".gguf"):
        return ObjectUri(scheme, bucket, path)
    prefix, _, file = path.rpartition("/")
    return ObjectUri(scheme, bucket, prefix, file)


def _web(uri: str, rest: str) -> WebUri:
    host, _, path = rest.partition("/")
    if not _HOST.fullmatch(host) or not is_safe_path(path) or "?" in path or "#" in path:
        raise ConfigError(
            "https:// must be followed by host/path, without user, query and fragment, got "
            f"{shown(uri)!r}; put what opens it into model.credentialsSecret"
        )
    if path.endswith(".gguf"):
        return WebUri(uri, path.rpartition("/")[2])
    if path.endswith(".tar"):
        return WebUri(uri)
    raise ConfigError(
        f"https:// must lead to a .gguf or a .tar file, got {shown(uri)!r}; pack the model's "
        "folder into a .tar without compression, of which any part can be read"
    )


def shown(uri: str) -> str:
    """What may be shown of a URI that should carry no user and no query, but is not parsed yet: in
    a password or a query may stand anything, an @ or a ? too."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    place, *more = re.split(r"[?#]", rest, maxsplit=1)
    host = place.rpartition("@")[2]
    return f"{scheme}{separator}{MARK if more and '@' in rest else host}"


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
