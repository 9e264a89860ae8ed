"""Listing a model on the hub, through huggingface_hub: what there is, pinned to a commit."""

from datetime import UTC, datetime
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi
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
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.retry import RETRYABLE_STATUSES, TryAgain, retry_after_seconds
from quire_engine.fetch.source import Digest, HubUri, Listing, RemoteFile

LISTING_SECONDS = 15.0


def list_files(uri: HubUri, revision: str | None, options: SourceOptions) -> Listing:
    """All files of the commit that `revision` names now.

    Raises SourceNotFound, SourceUnauthorized or Corrupt for good, TryAgain for what may pass.
    """
    api = HfApi(endpoint=options.endpoint, token=options.token or False, library_name="quire")
    try:
        info = api.model_info(
            uri.repo, revision=revision, files_metadata=True, timeout=LISTING_SECONDS
        )
    except HFValidationError as error:
        raise ConfigError(
            f"hf:// must be followed by org/name, got {uri.repo!r}: {error}"
        ) from None
    except HfHubHTTPError as error:
        raise _explained(error, uri, revision, options) from None
    except (httpx2.HTTPError, OSError) as error:
        raise TryAgain(
            SourceUnreachable(
                f"{options.endpoint} must answer, got {type(error).__name__}: {error}; check "
                "HF_ENDPOINT, the proxy variables and the network policy"
            )
        ) from None
    if info.sha is None or info.siblings is None:
        raise Corrupt(f"{options.endpoint} must list a commit and its files for {uri.repo}")
    return Listing(info.sha, tuple(_remote_file(sibling, uri) for sibling in info.siblings))


def file_url(endpoint: str, uri: HubUri, commit: str, path: str) -> str:
    """Where the hub serves this file of this commit."""
    return f"{endpoint}/{uri.repo}/resolve/{commit}/{quote(path)}"


def _remote_file(sibling: RepoSibling, uri: HubUri) -> RemoteFile:
    if sibling.lfs is not None:
        digest = Digest("sha256", sibling.lfs.sha256)
        return RemoteFile(sibling.rfilename, sibling.lfs.size, digest)
    if sibling.size is None or sibling.blob_id is None:
        raise Corrupt(
            f"the listing of {uri.repo} must give size and digest of each file, got neither for "
            f"{sibling.rfilename!r}; the mirror must answer ?blobs=true"
        )
    return RemoteFile(sibling.rfilename, sibling.size, Digest("git-sha1", sibling.blob_id))


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
