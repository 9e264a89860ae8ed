"""What `quire-engine fetch` and `plan` are told. cli.py reads flags and environment into these."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.fetch.uri import is_safe_path, refuse_login, shown, web_host
from quire_engine.gpu_types import GpuType
from quire_engine.redaction import Redactor, secrets_in_address

DEFAULT_ENDPOINT = "https://huggingface.co"
CONNECT_SECONDS = 10.0
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
)
_TAKEN = ("model", "manifest.json", ".staging")
_PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
STORAGE_VARIABLES = (
    *_SECRET_VARIABLES,
    "AWS_ACCESS_KEY_ID",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
)


@dataclass(frozen=True)
class SourceOptions:
    """Where models come from and how patient we are with it."""

    endpoint: str = DEFAULT_ENDPOINT
    """Address of the hub or of a mirror of it. HF_ENDPOINT."""

    token: str | None = field(default=None, repr=False)
    """Access token. HF_TOKEN. Never logged, never written."""

    storage: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What object stores are opened with, by the names that their own tools read from the
    environment (STORAGE_VARIABLES)."""

    http_login: tuple[str, str] | None = field(default=None, repr=False)
    """User and password for https://. QUIRE_HTTP_USERNAME, QUIRE_HTTP_PASSWORD."""

    http_token: str | None = field(default=None, repr=False)
    """Bearer token for https://. QUIRE_HTTP_TOKEN."""

    ca_pem: str | None = field(default=None, repr=False)
    """Certificates, as text, that are trusted beside the machine's own. QUIRE_CA_PEM."""

    proxies: tuple[str, ...] = field(default=(), repr=False)
    """Addresses of proxies, for the passwords in them: the clients themselves read HTTPS_PROXY,
    HTTP_PROXY and ALL_PROXY."""

    connections: int = 8
    """Parts on their way at once; each holds 512 KiB. One connection alone seldom fills a line."""

    stall_seconds: float = 60.0
    """Seconds without a byte, in one wait for it or in several, after which the fetch fails."""

    silences: int = 3
    """Waits for a byte that fit into stall_seconds: another connection may bring what this one does
    not."""

    max_attempts: int = 8
    """Attempts in a row without progress, per part: about a minute with the waits between them."""

    backoff_seconds: float = 0.5
    """Wait after the first failure; doubles up to 30 s, each with a random share of up to half."""

    part_bytes: int | None = None
    """Size of a part. None: 16 MiB, for files above 1 GiB 64 MiB (a redirect to the CDN each)."""

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> "SourceOptions":
        """Endpoint, credentials and CA as the fields above name them; empty values are unset."""
        given = {key: value.strip() for key, value in environment.items() if value.strip()}
        user, password = given.get("QUIRE_HTTP_USERNAME"), given.get("QUIRE_HTTP_PASSWORD")
        return SourceOptions(
            endpoint=given.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/"),
            token=given.get("HF_TOKEN"),
            storage={key: given[key] for key in STORAGE_VARIABLES if key in given},
            http_login=(user, password) if user and password else None,
            http_token=given.get("QUIRE_HTTP_TOKEN"),
            ca_pem=given.get("QUIRE_CA_PEM"),
            proxies=tuple(given[key] for key in given if key.upper() in _PROXY_VARIABLES),
        )

    def of_adapter(self, uri: str, host: str | None) -> "SourceOptions":
        """These for an adapter at `uri`. Another web server than `host`, for which the credentials
        are (`uri.web_host`), is not told them."""
        if not uri.startswith("https://") or web_host((uri,)) == host:
            return self
        return replace(self, http_login=None, http_token=None)

    @property
    def silence_seconds(self) -> float:
        """How long one wait may bring nothing, wherever it is for a byte: in a listing, a header or
        a part of a file. The pauses between the waits take the rest of stall_seconds."""
        return self.stall_seconds * 0.95 / self.silences

    @property
    def connect_seconds(self) -> float:
        """How long a connection may take; less than a byte may, so that it is told as what it is.
        Ten seconds bear three SYNs that are lost."""
        return min(CONNECT_SECONDS, self.silence_seconds * 0.6)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no text of ours may hold."""
        known = (self.token, self.http_token, *self._logins(), *self._keys())
        addresses = (self.endpoint, *self.proxies, *self.storage.values())
        carried = (secret for text in addresses for secret in secrets_in_address(text))
        return tuple(text for text in (*known, *carried) if text)

    def _logins(self) -> Iterator[str]:
        if self.http_login is not None:
            yield self.http_login[1]
            yield base64.b64encode(":".join(self.http_login).encode()).decode()

    def _keys(self) -> Iterator[str]:
        """The stores' secrets, and the one in a key file or a signature that stands for all."""
        for name in _SECRET_VARIABLES:
            value = self.storage.get(name, "")
            yield value
            if name == "AZURE_STORAGE_SAS_TOKEN":
                yield dict(parse_qsl(value)).get("sig", "")
            if name == "GOOGLE_SERVICE_ACCOUNT_KEY":
                yield _private_key(value)

    @cached_property
    def redact(self) -> Redactor:
        """Makes of a text what may be written and logged."""
        return Redactor(self.secrets)

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                "HF_ENDPOINT must be an http:// or https:// address, got "
                f"{self.redact(self.endpoint)!r}; "
                f"unset it for {DEFAULT_ENDPOINT}"
            )
        for name in ("connections", "stall_seconds", "silences", "max_attempts"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")


def _private_key(service_account: str) -> str:
    """Of a Google service account's JSON; empty where that is none."""
    try:
        account = json.loads(service_account)
    except ValueError:
        return ""
    return str(account.get("private_key", "")) if isinstance(account, dict) else ""


@dataclass(frozen=True)
class AdapterFetch:
    """A LoRA adapter that is fetched beside a model."""

    folder: str
    """Its own, below the volume's root: model/, manifest.json and .staging/ appear in it."""

    uri: str
    """As a model's, of a folder in PEFT's format."""

    revision: str | None = None
    """As a model's. An adapter that lies there whole is kept, wherever a branch has moved since."""

    @staticmethod
    def parse(text: str) -> "AdapterFetch":
        """FOLDER=URI or FOLDER=URI#REVISION. ConfigError for anything that is none."""
        refuse_login(text)
        folder, equals, place = text.partition("=")
        uri, mark, revision = place.partition("#")
        if not equals or not is_safe_path(folder) or not uri or (mark and not revision):
            raise ConfigError(
                f"adapter must be FOLDER=URI or FOLDER=URI#REVISION, got {shown(text)!r}; write "
                "--adapter adapters/support=hf://org/support"
            )
        if PurePosixPath(folder).parts[0] in _TAKEN:
            raise ConfigError(
                f"an adapter's folder must not begin with {', '.join(_TAKEN)}, where the model "
                f"lies, got {folder!r}; write --adapter adapters/support=..."
            )
        return AdapterFetch(folder, uri, revision or None)


def _check_apart(adapters: Sequence[AdapterFetch]) -> None:
    """Each adapter replaces its folder whole, so none lies in another's. ConfigError."""
    folders = [PurePosixPath(adapter.folder) for adapter in adapters]
    for i, folder in enumerate(folders):
        for other in folders[:i]:
            if folder.is_relative_to(other) or other.is_relative_to(folder):
                raise ConfigError(
                    f"adapters must lie in folders of their own, got {other} and {folder}; give "
                    "each --adapter another folder"
                )


@dataclass(frozen=True)
class FetchOptions:
    """One run of `quire-engine fetch`."""

    uri: str
    """hf://org/name, or hf://org/name/file.gguf for one GGUF file."""

    directory: Path
    """Root of the volume: model/, manifest.json and .staging/ appear in it."""

    revision: str | None = None
    """Branch, tag or commit. None: the branch main. Resolved to a commit once a run."""

    adapters: tuple[AdapterFetch, ...] = ()
    """LoRA adapters, brought before the model: they are small, and what is wrong with one is known
    before gigabytes are fetched."""

    progress_port: int | None = None
    """TCP port of GET /progress, on all addresses. None: not served; 0: a free one."""

    verify: bool = False
    """Hash what is on the volume. Bad files are Corrupt unless `repair` is set too."""

    repair: bool = False
    """Hash what is on the volume and fetch the bad files again, from the commit that it holds."""

    keep: bool = False
    """A model that lies there whole stays, unasked what its source has now, as adapters always do:
    others serve from it. `repair` looks all the same."""

    source: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        _check_apart(self.adapters)


@dataclass(frozen=True)
class Price:
    """What an engine costs, and what it does for that."""

    per_hour: float
    """Of all that one engine runs on, in any currency."""

    tokens_per_second: float
    """That it was measured to answer, over all requests."""

    @staticmethod
    def of(per_hour: float | None, tokens_per_second: float | None) -> "Price | None":
        """None where neither is given. ConfigError for one alone, or for what is no number > 0."""
        if per_hour is None and tokens_per_second is None:
            return None
        if per_hour is None or tokens_per_second is None:
            raise ConfigError(
                "price-per-hour and tokens-per-second make a cost together, got "
                f"{per_hour} and {tokens_per_second}; give both, or neither"
            )
        for name, value in (("price-per-hour", per_hour), ("tokens-per-second", tokens_per_second)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} must be > 0, got {value}; leave out --{name}")
        return Price(per_hour, tokens_per_second)

    @property
    def per_million_tokens(self) -> float:
        return self.per_hour / (3600 * self.tokens_per_second) * 1_000_000

    @property
    def told(self) -> str:
        return (
            f"{self.per_million_tokens:,.4g} per million tokens ({self.per_hour:g} an hour at "
            f"{self.tokens_per_second:,g} tokens/s)"
        )


@dataclass(frozen=True)
class PlanOptions:
    """One run of `quire-engine plan`."""

    model: str
    """Folder, .gguf file or URI of a source."""

    engine: EngineConfig
    """What `serve` would be told, by the flags after `--`."""

    revision: str | None = None
    """As for a fetch; only with URIs that have revisions."""

    memory_bytes: int | None = None
    """Memory of one GPU, or the container's limit on a CPU. None: the plan says what is needed and
    refuses nothing."""

    as_json: bool = False
    """One JSON object instead of lines for people."""

    gpu: GpuType | None = None
    """The type of GPU that is planned for, in place of `memory_bytes`."""

    price: Price | None = None
    """For the cost of tokens."""

    source: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        if self.gpu is not None and self.memory_bytes is not None:
            raise ConfigError(
                f"gpu has a memory of its own, got {self.gpu.name} and memory {self.memory_bytes}; "
                "leave out --memory or --gpu"
            )
        if self.gpu is not None and self.engine.device == "cpu":
            raise ConfigError(
                f"gpu needs a plan for a GPU, got {self.gpu.name} and device cpu; leave out "
                "--device or --gpu"
            )

    @property
    def target_engine(self) -> EngineConfig:
        """On the GPU that is named, whatever is here."""
        if self.gpu is None:
            return self.engine
        return msgspec.structs.replace(self.engine, device="cuda")

    @property
    def target_memory_bytes(self) -> int | None:
        return self.memory_bytes if self.gpu is None else self.gpu.memory_bytes
