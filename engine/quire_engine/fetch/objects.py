"""Models in S3, Google Cloud Storage and Azure Blob Storage, and whatever speaks like one of them.

obstore signs, lists and reads ranges; when to try again is the transfer's to say, as for the hub.
Its errors are taken apart by their words: it has one class for most of them, and shows in them what
the server wrote, which is not ours to repeat.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from quire_engine.errors import ConfigError
from quire_engine.fetch.errors import (
    SourceChanged,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnreachable,
)
from quire_engine.fetch.http_ranges import (
    at_a_pace,
    first_bytes,
    gone,
    interrupted,
    stalled,
    tls_context,
)
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import RETRYABLE_STATUSES, TryAgain
from quire_engine.fetch.source import Listing, Location, RemoteFile, listing_of, versioned
from quire_engine.fetch.sources import OpenSpan
from quire_engine.fetch.uri import ObjectUri

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
# The HTTP client has two timers for a connection: `Error(Connect, TimedOut)`, or with a
# ConnectError in the place of TimedOut.
_CONNECTING = re.compile(r"\bError\(\s*Connect,")
_REFUSED_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "ExpiredToken", "InvalidToken", "InvalidArgument"}
)
KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT_KEY",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_LOGINS = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
    ),
}


class ObjectSource:
    """One prefix of a bucket: its files lie right below it."""

    keeps_commits = False

    def __init__(self, uri: ObjectUri, options: SourceOptions) -> None:
        self._uri, self._options = uri, options
        self._known = any(name in options.storage for name in _LOGINS[uri.scheme])
        self._store = self._open()

    def list_files(self, revision: str | None) -> Listing:
        """The files right below the prefix. Its commit is made of their sizes and ETags, and a
        revision can only name that one: a bucket keeps no earlier ones that it would list."""
        try:
            listed = obstore.list_with_delimiter(self._store, self._uri.prefix or None)
        except (BaseError, OSError) as error:
            raise self._explained(error, self._uri.name) from None
        # Consoles show a folder by an empty object "prefix/"; it is listed as the prefix itself.
        found = (meta for meta in listed["objects"] if meta["path"] != self._uri.prefix)
        files = [self._remote_file(meta) for meta in found]
        if not files:
            archive = "an archive" if self._uri.prefix.endswith(_ARCHIVES) else "none"
            raise SourceNotFound(
                f"{self._uri.name} must hold a model's files one by one, got {archive}; correct "
                "model.uri"
            )
        return listing_of(files, self._uri, revision)

    def _remote_file(self, meta: "ObjectMeta") -> RemoteFile:
        key, etag = meta["path"], _version_of(meta)
        path = key.removeprefix(self._uri.prefix).removeprefix("/")
        return versioned(path, meta["size"], Location(key, etag), self._uri)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[OpenSpan]:
        yield self._stream

    @asynccontextmanager
    async def _stream(self, file: RemoteFile, span: range) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            result = await obstore.get_async(
                self._store, file.location.address, options=_options(file, span)
            )
            _check(result.meta, file)
        except (BaseError, OSError) as error:
            raise self._explained(error, file.path, is_listed=True) from None
        yield self._chunks(result, file)

    async def _chunks(self, result: "GetResult", file: RemoteFile) -> AsyncIterator[bytes]:
        # 1: as they come. What is gathered for a larger chunk would be lost when the line is cut.
        try:
            async for chunk in result.stream(min_chunk_size=1):
                yield bytes(chunk)
        except BaseError as error:
            raise self._explained(error, file.path, is_listed=True) from None

    def read(self, file: RemoteFile, span: range) -> bytes:
        try:
            result = obstore.get(self._store, file.location.address, options=_options(file, span))
            _check(result.meta, file)
            chunks = (bytes(chunk) for chunk in result.stream(min_chunk_size=1))
            paced = at_a_pace(chunks, self._options.silence_seconds)
            return first_bytes(paced, len(span), file.path)
        except httpx2.ReadTimeout:
            raise TryAgain(stalled(file.path, self._options)) from None
        except (BaseError, OSError) as error:
            raise self._explained(error, file.path, is_listed=True) from None

    def close(self) -> None:
        """Nothing is held open."""

    # ---- opening ------------------------------------------------------------------------------

    def _open(self) -> S3Store | GCSStore | AzureStore:
        scheme, storage = self._uri.scheme, self._options.storage
        tls_context(self._options)  # says what is wrong with the certificates
        config: dict[str, Any] = {
            name.lower(): value
            for name, value in storage.items()
            if name.startswith(_PREFIXES[scheme])
        }
        if not self._known:
            config["skip_signature"] = True  # else it asks the machine's own identity, for minutes
        if scheme == "az" and "AZURE_STORAGE_ACCOUNT_NAME" not in storage:
            raise ConfigError(
                f"az:// needs the storage account's name, got none for {self._uri.name}; put "
                "AZURE_STORAGE_ACCOUNT_NAME into the Secret that model.credentialsSecret names"
            )
        stores = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        try:
            return stores[scheme](  # type: ignore[no-any-return]
                self._uri.bucket,
                config=config,
                client_options=self._client_options(),
                retry_config={"max_retries": 0},
            )
        except (BaseError, ValueError, OSError) as error:
            if "No CA certificates" in str(error):
                raise ConfigError(
                    "object stores need CA certificates, got none on this machine; install "
                    "ca-certificates, or name a bundle in SSL_CERT_FILE"
                ) from None
            raise ConfigError(
                f"the settings of {scheme}:// must be as {KEYS[scheme]} and {_ENDPOINTS[scheme]} "
                "are for the provider's own tools, got some that cannot be read; correct the "
                "Secret that model.credentialsSecret names"
            ) from None

    def _client_options(self) -> "ClientConfig":
        endpoint = self._options.storage.get(_ENDPOINTS[self._uri.scheme], "")
        options: ClientConfig = {
            "allow_http": endpoint.startswith("http://"),  # whoever wrote that meant it
            "connect_timeout": f"{self._options.connect_seconds * 1000:.0f}ms",
            "read_timeout": f"{self._options.silence_seconds * 1000:.0f}ms",
            "timeout": "1d",  # of a whole part: slow is not stalled
        }
        if self._options.ca_pem is not None:
            options["root_certificate"] = self._options.ca_pem
        return options

    # ---- what went wrong ----------------------------------------------------------------------

    def _explained(self, error: Exception, what: str, *, is_listed: bool = False) -> Exception:
        """Our error for one of obstore's; `what` was asked for."""
        text, where = self._options.redact(str(error)), f"{what} at {self._place()}"
        status, code = _found(_STATUS, text), _found(_CODE, text)
        said = f"HTTP {status}" + (f", {code}" if code else "")
        if status == "412":
            return _changed(what)
        if status in ("401", "403") or code in _REFUSED_CODES:
            return SourceUnauthorized(f"{where} was refused ({said}): {self._advice()}")
        if status == "404" and is_listed:
            return gone(what, said)
        if status == "404":
            return SourceNotFound(f"{where} was not found ({said}); correct model.uri")
        if "non-partial response" in text:
            return SourceUnreachable(
                f"{where} must be served by Range, got all of it; take a store that knows ranges"
            )
        if "configured region" in text:
            return SourceUnreachable(
                f"{where} lies in another region; put the bucket's AWS_REGION into the Secret that "
                "model.credentialsSecret names"
            )
        if status:
            failure = SourceUnreachable(f"{where} must be served, got {said} again and again")
            return TryAgain(failure) if int(status) in RETRYABLE_STATUSES else failure
        is_late, is_unconnected = "kind: Timeout" in text, bool(_CONNECTING.search(text))
        if is_late and not is_unconnected:
            return TryAgain(stalled(what, self._options))
        if "Body" in text:
            return TryAgain(interrupted(what, "a cut connection"))
        return TryAgain(
            SourceUnreachable(
                f"{where} must answer, got {text.splitlines()[0][:200]!r}; check "
                f"{_ENDPOINTS[self._uri.scheme]}, the proxy variables, the CA bundle and the "
                "network policy"
            ),
            silent=is_late,
        )

    def _place(self) -> str:
        endpoint = self._options.storage.get(_ENDPOINTS[self._uri.scheme], "")
        return endpoint or {"s3": "AWS", "gs": "Google", "az": "Azure"}[self._uri.scheme]

    def _advice(self) -> str:
        keys = KEYS[self._uri.scheme]
        if self._known:
            return f"renew {keys} in the Secret that model.credentialsSecret names"
        return (
            f"it was asked without credentials; name a Secret with {keys} in "
            "model.credentialsSecret"
        )


def _options(file: RemoteFile, span: range) -> "GetOptions":
    options: GetOptions = {"range": (span.start, span.stop)}
    if file.location.etag.startswith('"'):
        options["if_match"] = file.location.etag
    return options


def _check(meta: "ObjectMeta", file: RemoteFile) -> None:
    """Not every store heeds If-Match."""
    if (_version_of(meta), meta["size"]) != (file.location.etag, file.size):
        raise _changed(file.path)


def _changed(what: str) -> SourceChanged:
    return SourceChanged(
        f"{what} must stay the same while it is fetched, got another ETag than was listed; let the "
        "upload end first"
    )


def _version_of(meta: "ObjectMeta") -> str:
    """The ETag in quotes (Azure lists it without), or the time where a store has none."""
    etag = meta["e_tag"]
    if etag is None:
        return meta["last_modified"].isoformat()
    return etag if etag.endswith('"') else f'"{etag}"'


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""
