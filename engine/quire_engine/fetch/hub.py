"""Models on the hub: listed by huggingface_hub, pinned to a commit, their bytes over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from quire_engine.errors import ConfigError
from quire_engine.fetch.errors import (
    Corrupt,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnreachable,
)
from quire_engine.fetch.http_ranges import (
    client_timeout,
    new_client,
    new_reader,
    read_span,
    stalled,
    stream_span,
)
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import RETRYABLE_STATUSES, TryAgain, retry_after_seconds
from quire_engine.fetch.source import Digest, Listing, Location, RemoteFile
from quire_engine.fetch.sources import OpenSpan
from quire_engine.fetch.uri import HubUri


class HubSource:
    """One repository of a hub or of its mirror."""

    keeps_commits = True

    def __init__(self, uri: HubUri, options: SourceOptions) -> None:
        self._uri, self._options = uri, options
        self._headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}
        self._reader: httpx2.Client | None = None

    def list_files(self, revision: str | None) -> Listing:
        """All files of the commit that `revision` names now."""
        uri, options = self._uri, self._options
        set_client_factory(partial(new_reader, options))
        api = HfApi(endpoint=options.endpoint, token=options.token or False, library_name="quire")
        try:
            info = api.model_info(
                uri.repo,
                revision=revision,
                files_metadata=True,
                timeout=client_timeout(options),  # type: ignore[arg-type]  # its client's own kind
            )
        except HFValidationError as error:
            raise ConfigError(
                f"hf:// must be followed by org/name, got {uri.repo!r}: {error}"
            ) from None
        except HfHubHTTPError as error:
            raise _explained(error, uri, revision, options) from None
        except httpx2.ReadTimeout:
            raise TryAgain(stalled(f"the list of {uri.repo}", options)) from None
        except (httpx2.HTTPError, OSError) as error:
            raise TryAgain(
                SourceUnreachable(
                    f"{options.endpoint} must answer, got {type(error).__name__}: {error}; check "
                    "HF_ENDPOINT, the proxy variables and the network policy"
                ),
                silent=isinstance(error, httpx2.TimeoutException),
            ) from None
        if info.sha is None or info.siblings is None:
            raise Corrupt(f"{options.endpoint} must list a commit and its files for {uri.repo}")
        commit = info.sha
        return Listing(commit, tuple(self._remote_file(file, commit) for file in info.siblings))

    def _remote_file(self, sibling: RepoSibling, commit: str) -> RemoteFile:
        size, digest = _content_of(sibling, self._uri)
        path = sibling.rfilename
        url = f"{self._options.endpoint}/{self._uri.repo}/resolve/{commit}/{quote(path)}"
        return RemoteFile(path, size, digest, Location(url))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[OpenSpan]:
        async with new_client(self._options) as client:
            yield lambda file, span: stream_span(client, file, span, self._headers, self._options)

    def read(self, file: RemoteFile, span: range) -> bytes:
        if self._reader is None:
            self._reader = new_reader(self._options)
        return read_span(self._reader, file, span, self._headers, self._options)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _content_of(sibling: RepoSibling, uri: HubUri) -> tuple[int, Digest]:
    if sibling.lfs is not None:
        return sibling.lfs.size, Digest("sha256", sibling.lfs.sha256)
    if sibling.size is None or sibling.blob_id is None:
        raise Corrupt(
            f"the listing of {uri.repo} must give size and digest of each file, got neither for "
            f"{sibling.rfilename!r}; the mirror must answer ?blobs=true"
        )
    return sibling.size, Digest("git-sha1", sibling.blob_id)


def _explained(
    error: HfHubHTTPError, uri: HubUri, revision: str | None, options: SourceOptions
) -> Exception:
    status, where = error.response.status_code, f"hf://{uri.repo} at {options.endpoint}"
    if isinstance(error, GatedRepoError):
        return SourceUnauthorized(f"{where} is gated: {_token_advice(options)}")
    if isinstance(error, RevisionNotFoundError):
        return SourceNotFound(
            f"{where} has no revision {revision or 'main'!r}; correct model.revision"
        )
    if isinstance(error, RepositoryNotFoundError):
        private = "" if options.token else ", or it is private and no token was given"
        return SourceNotFound(
            f"{where} was not found (HTTP {status}){private}; correct model.uri, or name a Secret "
            "with the key `token` in model.credentialsSecret"
        )
    if status in (401, 403):
        return SourceUnauthorized(f"{where} answered HTTP {status}: {_token_advice(options)}")
    if status == 404:
        return SourceNotFound(f"{where} was not found (HTTP 404); correct model.uri")
    failure = SourceUnreachable(f"{where} must answer its listing, got HTTP {status}")
    if status not in RETRYABLE_STATUSES:
        return failure
    wait = retry_after_seconds(error.response.headers.get("Retry-After"), datetime.now(UTC))
    return TryAgain(failure, wait)


def _token_advice(options: SourceOptions) -> str:
    if options.token is None:
        return "no token was given; name a Secret with the key `token` in model.credentialsSecret"
    return "the token was refused; renew it in the Secret that model.credentialsSecret names"
