"""Models at one https address: a .gguf file, or a .tar of a model's folder."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx2

from quire_engine.fetch.archive import read_members
from quire_engine.fetch.errors import (
    SourceNotFound,
    SourceUnauthorized,
    SourceUnreachable,
)
from quire_engine.fetch.http_ranges import (
    check_status,
    new_client,
    new_reader,
    read_span,
    stalled,
    stream_span,
    version_of,
)
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import TryAgain
from quire_engine.fetch.source import Listing, Location, RemoteFile, listing_of, versioned
from quire_engine.fetch.sources import OpenSpan
from quire_engine.fetch.uri import WebUri


class WebSource:
    """One file on a web server that knows ranges and tells versions apart."""

    keeps_commits = False

    def __init__(self, uri: WebUri, options: SourceOptions) -> None:
        self._uri, self._options = uri, options
        scheme, _, path = uri.url.partition("://")
        self._url = f"{scheme}://{quote(path, safe='/:[]')}"
        self._auth = _authorization(options)
        self._reader: httpx2.Client | None = None

    def list_files(self, revision: str | None) -> Listing:
        """The one file, or those in the archive. Their commit is made of size and ETag."""
        size, version = self._look()
        if self._uri.file is not None:
            location = Location(self._url, version)
            file = versioned(self._uri.file, size, location, self._uri)
            return listing_of([file], self._uri, revision)
        return listing_of(self._members(size, version), self._uri, revision)

    def _members(self, size: int, version: str) -> list[RemoteFile]:
        whole = versioned(self._uri.basename, size, Location(self._url, version), self._uri)

        def read(start: int, stop: int) -> bytes:
            return self.read(whole, range(start, stop))

        return [
            versioned(
                member.path,
                member.size,
                Location(self._url, version, member.offset, size),
                self._uri,
            )
            for member in read_members(read, size, self._uri.url)
        ]

    def _look(self) -> tuple[int, str]:
        """The file's size and version, from an answer to one of its bytes."""
        try:
            with self._client().stream("GET", self._url, headers=self._one_byte()) as response:
                return self._size_of(response), version_of(response)
        except httpx2.ReadTimeout:
            raise TryAgain(stalled(self._uri.url, self._options)) from None
        except httpx2.HTTPError as error:
            raise TryAgain(
                SourceUnreachable(
                    f"{self._uri.url} must answer, got {type(error).__name__}: {error}; check the "
                    "proxy variables, the CA bundle and the network policy"
                ),
                silent=isinstance(error, httpx2.TimeoutException),
            ) from None

    def _one_byte(self) -> dict[str, str]:
        return {"Range": "bytes=0-0", "Accept-Encoding": "identity", **self._auth}

    def _size_of(self, response: httpx2.Response) -> int:
        status, url = response.status_code, self._uri.url
        if status in (401, 403):
            raise SourceUnauthorized(f"{url} was refused (HTTP {status}): {self._advice()}")
        if status in (404, 410):
            raise SourceNotFound(f"{url} was not found (HTTP {status}); correct model.uri")
        check_status(response, url)
        unit, _, size = response.headers.get("Content-Range", "").partition("/")
        if status != 206 or not unit.startswith("bytes ") or not size.isdecimal():
            raise SourceUnreachable(
                f"{url} must be served by Range with its whole size, got HTTP {status}; take a "
                "server that knows ranges: without them no download could be gone on with"
            )
        if not version_of(response):
            raise SourceUnreachable(
                f"{url} must be served with an ETag or Last-Modified, got neither; without one "
                "nobody could tell that the file changed between two requests"
            )
        return int(size)

    def _advice(self) -> str:
        if self._auth:
            return "renew the credentials in the Secret that model.credentialsSecret names"
        return (
            "it was asked without credentials; name a Secret with `token`, or `username` and "
            "`password`, in model.credentialsSecret"
        )

    def _client(self) -> httpx2.Client:
        if self._reader is None:
            self._reader = new_reader(self._options)
        return self._reader

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[OpenSpan]:
        async with new_client(self._options) as client:
            yield lambda file, span: stream_span(client, file, span, self._auth, self._options)

    def read(self, file: RemoteFile, span: range) -> bytes:
        return read_span(self._client(), file, span, self._auth, self._options)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _authorization(options: SourceOptions) -> dict[str, str]:
    if options.http_token is not None:
        return {"Authorization": f"Bearer {options.http_token}"}
    if options.http_login is not None:
        login = base64.b64encode(":".join(options.http_login).encode()).decode()
        return {"Authorization": f"Basic {login}"}
    return {}
