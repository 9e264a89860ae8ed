"""Ranges of files over HTTP: what an answer must be, and which failures may pass."""

import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx2

from quire_engine.errors import ConfigError
from quire_engine.fetch.errors import (
    Corrupt,
    SourceChanged,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnreachable,
    Stalled,
)
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import RETRYABLE_STATUSES, TryAgain, retry_after_seconds
from quire_engine.fetch.source import RemoteFile

MOST_ANSWER_BYTES = 64 * 1024**2  # of a listing, or of what comes with a refusal
DRIP_BYTES = 64 * 1024  # an answer for headers or a listing that brings less in its time is silent


def tls_context(options: SourceOptions) -> ssl.SSLContext:
    """What the machine trusts (SSL_CERT_FILE, or its own roots), and QUIRE_CA_PEM beside it."""
    context = httpx2.create_ssl_context()
    if options.ca_pem is not None:
        try:
            context.load_verify_locations(cadata=options.ca_pem)
        except ssl.SSLError as error:
            raise ConfigError(
                f"QUIRE_CA_PEM must hold certificates in PEM form, got {error}; set models.caBundle"
                " of the chart to the text of the CA's .pem file"
            ) from None
    return context


def new_client(options: SourceOptions) -> httpx2.AsyncClient:
    """A client as patient as `options` says. Proxies come from the environment."""
    return httpx2.AsyncClient(
        verify=tls_context(options),
        timeout=client_timeout(options),
        limits=httpx2.Limits(max_connections=options.connections),
        follow_redirects=True,  # the token stays with its own host
        event_hooks={"response": [_check_redirect]},
    )


def new_reader(options: SourceOptions) -> httpx2.Client:
    """A client for small reads in a row, which reads no answer without end."""

    def bound(response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _BoundedStream(response.stream, response.url.host, options)

    return httpx2.Client(
        verify=tls_context(options),
        timeout=client_timeout(options),
        follow_redirects=True,
        headers={"Accept-Encoding": "identity"},  # kilobytes may unpack to gigabytes
        event_hooks={"response": [check_redirect, _check_encoding, bound]},
    )


def client_timeout(options: SourceOptions) -> httpx2.Timeout:
    """As patient as `options` says, for a connection and for each byte."""
    return httpx2.Timeout(options.silence_seconds, connect=options.connect_seconds, pool=None)


class _BoundedStream(httpx2.SyncByteStream):
    """A body that must come at a least pace, and end."""

    def __init__(self, body: httpx2.SyncByteStream, host: str, options: SourceOptions) -> None:
        self._body, self._host, self._seconds = body, host, options.silence_seconds

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        for chunk in at_a_pace(self._body, self._seconds):
            total += len(chunk)
            if total > MOST_ANSWER_BYTES:
                raise Corrupt(
                    f"{self._host} must answer with at most {MOST_ANSWER_BYTES:,} bytes where no "
                    "file is asked for, got more; name a hub or a mirror of one"
                )
            yield chunk

    def close(self) -> None:
        self._body.close()


def at_a_pace(chunks: Iterable[bytes], seconds: float) -> Iterator[bytes]:
    """The chunks, until fewer than DRIP_BYTES came in so many seconds: then ReadTimeout, as if
    nothing had come."""
    begin, came = time.monotonic(), 0
    for chunk in chunks:
        came += len(chunk)
        yield chunk
        now = time.monotonic()
        if came >= DRIP_BYTES:
            begin, came = now, 0
        elif now - begin > seconds:
            raise httpx2.ReadTimeout(f"fewer than {DRIP_BYTES:,} bytes in {seconds:g} s")


def _check_encoding(response: httpx2.Response) -> None:
    given = response.headers.get("Content-Encoding", "identity")
    if given.lower() != "identity":
        raise SourceUnreachable(
            f"{response.url.host} must answer without compression, as it is asked to, got "
            f"{given[:40]!r}; mend the mirror or the proxy before it"
        )


async def _check_redirect(response: httpx2.Response) -> None:
    check_redirect(response)


def check_redirect(response: httpx2.Response) -> None:
    """SourceUnreachable for a redirect out of TLS: whoever asked for https wants bytes that nobody
    on the way could have changed, and a web server's have no digest that would tell."""
    if not response.has_redirect_location or response.url.scheme != "https":
        return
    try:
        target = response.url.join(response.headers["Location"])
    except httpx2.InvalidURL:
        return  # which the client says itself, in an error that its callers know
    if target.scheme != "https":
        raise SourceUnreachable(
            f"{response.url.host} must lead to https addresses only, got a redirect to "
            f"{target.scheme}://{target.host}; name an address that is served by https"
        )


@asynccontextmanager
async def stream_span(
    client: httpx2.AsyncClient,
    file: RemoteFile,
    span: range,
    headers: Mapping[str, str],
    options: SourceOptions,
) -> AsyncIterator[AsyncIterator[bytes]]:
    """These bytes of the file as they come. TryAgain for what may pass, here or in the block."""
    there = _there(file, span)
    try:
        async with client.stream(
            "GET", file.location.address, headers=_range_headers(there, headers)
        ) as response:
            check_response(response, file, there)
            yield response.aiter_raw()
    except httpx2.ReadTimeout:
        raise TryAgain(stalled(file.path, options)) from None
    except httpx2.HTTPError as error:
        failure = interrupted(file.path, type(error).__name__)
        raise TryAgain(failure, silent=isinstance(error, httpx2.TimeoutException)) from None


def read_span(
    client: httpx2.Client,
    file: RemoteFile,
    span: range,
    headers: Mapping[str, str],
    options: SourceOptions,
) -> bytes:
    """These bytes of the file, a few: whatever the server sends, no more is read. TryAgain for what
    may pass."""
    there = _there(file, span)
    try:
        with client.stream(
            "GET", file.location.address, headers=_range_headers(there, headers)
        ) as response:
            check_response(response, file, there)
            is_exact = response.headers.get("Content-Length") == str(len(span))
            return first_bytes(response.iter_raw(), len(span), file.path, to_the_end=is_exact)
    except httpx2.ReadTimeout:
        raise TryAgain(stalled(file.path, options)) from None
    except httpx2.HTTPError as error:
        failure = SourceUnreachable(f"{file.path} must be readable, got {type(error).__name__}")
        raise TryAgain(failure, silent=isinstance(error, httpx2.TimeoutException)) from None


def first_bytes(
    chunks: Iterable[bytes], num_bytes: int, path: str, *, to_the_end: bool = False
) -> bytes:
    """So many bytes, and TryAgain where there are fewer. `to_the_end`: the body has just as many;
    heard out, its connection serves the next request."""
    found = bytearray()
    for chunk in chunks:
        found += chunk[: num_bytes - len(found)]
        if len(found) == num_bytes and not to_the_end:
            break
    if len(found) < num_bytes:
        raise TryAgain(interrupted(path, "an early end"))
    return bytes(found)


def check_response(response: httpx2.Response, file: RemoteFile, span: range) -> None:
    """Hold an answer's status, ETag and Content-Range against what was asked for; `span` is that
    of what lies at the file's location."""
    status, path = response.status_code, file.path
    etag = file.location.etag
    if etag and status in (404, 410):
        raise gone(path, f"HTTP {status}")
    check_status(response, path)
    if etag and etag != version_of(response):
        raise SourceChanged(
            f"{path} must stay the same while it is fetched, got another ETag or date than at its "
            "begin; let the upload end first"
        )
    size = file.size if file.location.size is None else file.location.size
    whole = status == 200 and span == range(size)
    if not whole and status not in (206, 416):
        raise SourceUnreachable(
            f"{path} must be served by Range, got HTTP {status}; take a server that knows ranges"
        )
    served = response.headers.get("Content-Range" if not whole else "Content-Length", "")
    expected = f"{size}" if whole else f"bytes {span.start}-{span.stop - 1}/{size}"
    if served != expected:
        raise Corrupt(
            f"{path} must have the {size:,} bytes that the source lists, got an answer of "
            f"{served or 'unknown length'!r} for {expected!r}; the source contradicts itself"
        )


def check_status(response: httpx2.Response, path: str) -> None:
    """What a refusal's status means."""
    status = response.status_code
    if status in RETRYABLE_STATUSES:
        wait = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
        failure = SourceUnreachable(f"{path} must be served, got HTTP {status} again and again")
        raise TryAgain(failure, wait)
    if status in (401, 403):
        raise SourceUnauthorized(
            f"{path} was refused (HTTP {status}); accept the model's terms on the hub, or renew "
            "the credentials in the Secret that model.credentialsSecret names"
        )
    if status == 404:
        raise SourceNotFound(f"{path} is listed but was not found (HTTP 404)")


def version_of(response: httpx2.Response) -> str:
    """What tells this version of a file from another: its ETag, or else its date."""
    headers = response.headers
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def gone(path: str, what: str) -> SourceChanged:
    return SourceChanged(
        f"{path} must stay where it was listed while it is fetched, got {what}; let the upload end "
        "first, or put it back"
    )


def interrupted(path: str, what: str) -> SourceUnreachable:
    return SourceUnreachable(f"{path} must come whole, got {what} again and again")


def stalled(path: str, options: SourceOptions) -> Stalled:
    return Stalled(f"{path} must keep coming, got no byte for {options.stall_seconds:g} s")


def _there(file: RemoteFile, span: range) -> range:
    offset = file.location.offset
    return range(offset + span.start, offset + span.stop)


def _range_headers(span: range, headers: Mapping[str, str]) -> dict[str, str]:
    asked = {"Range": f"bytes={span.start}-{span.stop - 1}", "Accept-Encoding": "identity"}
    return {**asked, **headers}
