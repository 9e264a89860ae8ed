"""`quire-engine fetch`: list → clear the old → download → verify → install.

Read `_fetch_locked` first.
"""

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from quire_engine.adapters import CONFIG as ADAPTER_CONFIG
from quire_engine.adapters import check_adapter_config
from quire_engine.errors import (
    ConfigError,
    EngineError,
    ExitCode,
    FetchFailed,
    ModelError,
    ModelUnsupported,
)
from quire_engine.fetch.errors import (
    Corrupt,
    FetchInternal,
    NoSpace,
    SourceChanged,
    SourceNotFound,
    SourceUnreachable,
    Stalled,
    UnsupportedSource,
    of_adapter,
)
from quire_engine.fetch.manifest import Manifest, PlanSummary
from quire_engine.fetch.options import AdapterFetch, FetchOptions
from quire_engine.fetch.plan_command import summarize
from quire_engine.fetch.progress import Progress, served
from quire_engine.fetch.retry import Backoff, Patience, TryAgain
from quire_engine.fetch.source import Listing, RemoteFile, index_of, select, select_adapter
from quire_engine.fetch.sources import Source, open_source
from quire_engine.fetch.store import Store, manifest_files, megabytes
from quire_engine.fetch.transfer import Transfer
from quire_engine.fetch.uri import ModelUri, parse_adapter_uri, parse_uri, web_host
from quire_engine.models.config import parse_config
from quire_engine.redaction import configure_logging
from quire_engine.termination import report_fatal, report_success

logger = logging.getLogger(__name__)

LISTING_ATTEMPTS = 5
LISTINGS = 3  # of a source that changes while it is fetched
LOG_SECONDS = 5.0
LOCK_SECONDS = 0.5  # between looks at a volume that another fetch holds
SMALL_BYTES = 1024**2  # files that are fetched, and looked at, before the others
INTERRUPTED = 128 + signal.SIGTERM


class FetchDone(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The termination message of a fetch that ended well."""

    commit: str
    bytes_total: int
    bytes_fetched: int
    seconds: float
    plan: PlanSummary | None


@dataclass(frozen=True)
class _Run:
    """What the steps of one fetch share."""

    options: FetchOptions
    uri: ModelUri
    source: Source
    store: Store
    progress: Progress
    is_adapter: bool = False


def run(options: FetchOptions) -> int:
    """Fetch, tell how it ended, and return the exit code."""
    configure_logging(options.source.redact)
    progress = Progress(redact=options.source.redact)
    started = time.monotonic()
    try:
        manifest = asyncio.run(_supervised(options, progress))
    except asyncio.CancelledError:
        logger.warning("interrupted; the next run goes on from here")
        return INTERRUPTED
    except Exception as error:
        progress.phase = "failed"
        return _report_failure(error, options)
    done = FetchDone(
        commit=manifest.commit,
        bytes_total=progress.bytes_before + manifest.bytes_total,
        bytes_fetched=progress.fetched_before + progress.bytes_fetched,
        seconds=round(time.monotonic() - started, 2),
        plan=manifest.plan,
    )
    report_success(done)
    logger.info(
        "done commit=%s bytes=%d fetched=%d seconds=%.2f",
        done.commit, done.bytes_total, done.bytes_fetched, done.seconds,
    )  # fmt: skip
    return ExitCode.OK


async def _supervised(options: FetchOptions, progress: Progress) -> Manifest:
    """The fetch, with its progress served and logged, ended by SIGTERM (as process 1 of a container
    it would ignore that signal otherwise)."""
    fetching = asyncio.ensure_future(_fetch(options, progress))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, fetching.cancel)
    with served(progress, options.progress_port) as port:
        if port is not None:
            logger.info("serving progress port=%d", port)
        ticker = loop.create_task(_log_progress(progress))
        try:
            return await fetching
        finally:
            ticker.cancel()
            loop.remove_signal_handler(signal.SIGTERM)


async def _fetch(options: FetchOptions, progress: Progress) -> Manifest:
    """Adapters, each on its own, and then the model, whose manifest is returned."""
    uri = parse_uri(options.uri)
    for adapter in options.adapters:
        parse_adapter_uri(adapter.uri)
    for adapter in options.adapters:
        progress.adapter = adapter.uri
        await _fetch_adapter(adapter, options, progress)
        progress.next_content()
    return await _fetch_content(options, uri, progress)


async def _fetch_adapter(adapter: AdapterFetch, options: FetchOptions, progress: Progress) -> None:
    uri, _ = parse_adapter_uri(adapter.uri)
    host = web_host((options.uri, *(other.uri for other in options.adapters)))
    own = replace(
        options,
        source=options.source.of_adapter(adapter.uri, host),
        uri=adapter.uri,
        revision=adapter.revision,
        directory=options.directory / adapter.folder,
        adapters=(),
    )
    try:
        await _fetch_content(own, uri, progress, is_adapter=True)
    except FetchFailed as error:
        raise of_adapter(error, adapter.uri) from error


async def _fetch_content(
    options: FetchOptions, uri: ModelUri, progress: Progress, *, is_adapter: bool = False
) -> Manifest:
    source = open_source(uri, options.source)
    this = _Run(options, uri, source, Store(options.directory), progress, is_adapter)
    lock = await _locked(this)
    try:
        return await _fetch_locked(this)
    finally:
        source.close()
        os.close(lock)


async def _locked(this: _Run) -> int:
    """Wait for another fetch on this volume to end; then this one finds its work done."""
    while (lock := this.store.try_lock()) is None:
        this.progress.note = "waiting for another fetch on this volume"
        await asyncio.sleep(LOCK_SECONDS)
    this.progress.note = ""
    return lock


async def _fetch_locked(this: _Run) -> Manifest:
    this.store.recover()
    current = _current(this)
    if this.options.verify and not this.options.repair and current is not None:
        return await _verified(this, current)
    shared = this.is_adapter or (this.options.keep and not this.options.repair)
    if shared and current is not None and await _stays(this, current):
        return _kept(this, current)
    for changes in range(1, LISTINGS + 1):
        try:
            return await _brought(this, current)
        except SourceChanged as error:
            if changes == LISTINGS:
                raise
            logger.warning("the source changed, listing it anew cause=%s", error)
    raise AssertionError("unreachable")


async def _stays(this: _Run, current: Manifest) -> bool:
    """Whether what services share is whole and needs no look at its source: neither who comes later
    nor a repair of what lies beside it may move it under the others."""
    deep = this.options.repair
    return not await asyncio.to_thread(this.store.bad_files, current, deep=deep)


async def _brought(this: _Run, current: Manifest | None) -> Manifest:
    """List once and bring what was listed, or raise SourceChanged."""
    options, progress = this.options, this.progress
    try:
        listing = await _list(this, current)
    except (SourceUnreachable, Stalled) as error:
        if current is None or options.repair or this.store.bad_files(current, deep=False):
            raise
        logger.warning("keeping the complete model on the volume cause=%s", error)
        return _finished(this, current)
    listing = await _chosen(this, listing)
    progress.commit, progress.bytes_total = listing.commit, listing.bytes_total
    looked_only = progress.bytes_fetched == 0 and not options.repair  # an index may have been bad
    if looked_only and current is not None and _is_intact(this, current, listing, deep=False):
        return _kept(this, current)
    await _stage(this, listing)
    if options.repair and current is not None and await _found_intact(this, current, listing):
        return _kept(this, current)
    await _require_unchanged(this, listing)
    return _finished(this, await asyncio.to_thread(_install, this, listing))


async def _require_unchanged(this: _Run, listing: Listing) -> None:
    """Files that were replaced one after the other while we fetched are no model. Those of a commit
    cannot have been."""
    if this.source.keeps_commits:
        return
    now = await _list_revision(this, None)
    if now.commit != listing.commit:
        raise SourceChanged(
            f"{this.uri.name} must stay the same while it is fetched, got {now.commit} after "
            f"{listing.commit}; let the upload end first"
        )


def _current(this: _Run) -> Manifest | None:
    """What is installed, if it is what was asked for."""
    manifest, wanted = this.store.current(), this.options
    if manifest is None or (manifest.uri, manifest.revision) != (wanted.uri, wanted.revision or ""):
        return None
    return manifest


async def _verified(this: _Run, current: Manifest) -> Manifest:
    this.progress.phase = "verifying"
    bad = await asyncio.to_thread(this.store.bad_files, current, deep=True)
    if bad:
        raise Corrupt(
            f"the files of {current.uri} must be as they were fetched, got {len(bad)} altered: "
            f"{', '.join(bad[:5])}; run with --repair"
        )
    return _kept(this, current)


async def _list(this: _Run, current: Manifest | None) -> Listing:
    """All files of a commit. A repair stays with the installed one while the source has it."""
    revision = this.options.revision
    if this.options.repair and current is not None:
        try:
            return await _list_revision(this, current.commit)
        except SourceNotFound:
            logger.warning("the installed commit is gone from the source, taking %s", revision)
    return await _list_revision(this, revision)


async def _list_revision(this: _Run, revision: str | None) -> Listing:
    options = this.options.source
    backoff = Backoff(options.backoff_seconds)
    patience = Patience(
        LISTING_ATTEMPTS, options.stall_seconds, options.silence_seconds, time.monotonic()
    )
    this.progress.renew()
    while True:
        try:
            listing = await asyncio.to_thread(this.source.list_files, revision)
            this.progress.renew()
            return listing
        except TryAgain as error:
            this.progress.trouble = error.failure
            wait = error.retry_after
            if wait is None:
                wait = backoff.seconds(patience.failures + 1, 0.0)
            if patience.is_spent(error, time.monotonic() + wait):
                raise error.failure from None
            await asyncio.sleep(wait)


async def _chosen(this: _Run, listing: Listing) -> Listing:
    """The files that serving needs. An index says which those are, so it comes before them."""
    if this.is_adapter:
        return Listing(listing.commit, select_adapter(listing.files, this.uri))
    index = index_of(listing.files, this.uri)
    if index is None:
        return Listing(listing.commit, select(listing.files, this.uri))
    content = await asyncio.to_thread(this.store.read, index)
    if content is None:
        this.store.open_staging()
        await _download(this, [index])
        content = this.store.read(index)
        assert content is not None
    return Listing(listing.commit, select(listing.files, this.uri, content))


def _is_intact(this: _Run, current: Manifest, listing: Listing, *, deep: bool) -> bool:
    same = current.commit == listing.commit and {f.path for f in current.files} == {
        f.path for f in listing.files
    }
    return same and not this.store.bad_files(current, deep=deep)


async def _found_intact(this: _Run, current: Manifest, listing: Listing) -> bool:
    """Whether a repair has nothing to mend. That it had nothing to fetch does not say so: what a
    bad file lacks may have been staged by a repair that was killed, or be another file's too."""
    if this.progress.bytes_fetched > 0:
        return False
    return await asyncio.to_thread(_is_intact, this, current, listing, deep=True)


async def _stage(this: _Run, listing: Listing) -> None:
    """Bring every file into staging: from earlier runs, the installed model, or the source."""
    store, progress = this.store, this.progress
    store.begin(listing.files)
    if this.options.repair:
        store.forget_reused()
    if store.current() is not None:
        progress.phase = "verifying"  # its files are read, to be used again
    missing = {file.digest.key: file for file in listing.files if not store.has_blob(file)}
    for key, file in list(missing.items()):
        if await asyncio.to_thread(store.reuse, file):
            del missing[key]
    progress.bytes_done = sum(store.bytes_staged(file) for file in listing.files)
    # Before the first byte of weights, so that a model too large for its volume is said at once.
    needed = sum(file.size - store.bytes_staged(file) for file in missing.values())
    store.require_space(needed, this.options.uri)
    small = [file for file in missing.values() if file.size <= SMALL_BYTES]
    large = [file for file in missing.values() if file.size > SMALL_BYTES]
    await _download(this, small)
    _check_config(this, listing)
    await _download(this, large)


async def _download(this: _Run, files: Sequence[RemoteFile]) -> None:
    if not files:
        return
    async with this.source.connect() as open_span:
        transfer = Transfer(open_span, this.options.source, this.progress)
        await transfer.fetch(files, this.store.blobs)


def _check_config(this: _Run, listing: Listing) -> None:
    """Refuse a model that the engine cannot run before its weights are fetched."""
    if this.uri.file is not None:
        return  # a GGUF's architecture stands in the file itself
    name = ADAPTER_CONFIG if this.is_adapter else "config.json"
    [config] = [file for file in listing.files if file.path == name]
    content = (this.store.blobs / config.digest.key).read_bytes()
    if this.is_adapter:
        check_adapter_config(content, this.options.uri)
    else:
        parse_config(content, this.options.uri)


def _install(this: _Run, listing: Listing) -> Manifest:
    this.progress.phase = "verifying"
    folder = this.store.stage_model(listing.files)
    model = folder / this.uri.file if this.uri.file is not None else folder
    manifest = Manifest(
        uri=this.options.uri,
        revision=this.options.revision or "",
        commit=listing.commit,
        files=manifest_files(folder, listing.files),
        bytes_total=listing.bytes_total,
        plan=None if this.is_adapter else summarize(model),
    )
    this.store.install(manifest)
    return manifest


def _kept(this: _Run, current: Manifest) -> Manifest:
    """What is installed is what was asked for: what a killed run may have left goes."""
    this.store.drop_staging()
    return _finished(this, current)


def _finished(this: _Run, manifest: Manifest) -> Manifest:
    progress = this.progress
    progress.commit = manifest.commit
    progress.bytes_total = progress.bytes_done = manifest.bytes_total
    progress.renew()
    progress.phase = "done"
    return manifest


# ---- telling how it went ------------------------------------------------------------------------


async def _log_progress(progress: Progress) -> None:
    while True:
        await asyncio.sleep(LOG_SECONDS)
        report = progress.report()
        done, total = progress.bytes_done, progress.bytes_total  # an adapter's too
        eta = "unknown" if report.eta_seconds is None else f"{report.eta_seconds:.0f}s"
        logger.info(
            "%s done=%s total=%s rate=%s/s eta=%s note=%s",
            report.phase, megabytes(done), megabytes(total),
            megabytes(int(report.bytes_per_second)), eta, report.note,
        )  # fmt: skip


def _explain(error: Exception, options: FetchOptions) -> EngineError:
    """The error of our tree that an exception amounts to."""
    if isinstance(error, ModelUnsupported | ModelError):
        return UnsupportedSource(str(error))
    if isinstance(error, EngineError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        status = os.statvfs(options.directory)
        total = status.f_blocks * status.f_frsize
        return NoSpace(
            f"the volume must hold all of {options.uri}, got full at {megabytes(total)}; raise "
            "cache.size or free space on the claim"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FetchInternal(
            f"the volume must be writable for user {os.getuid()}, got {error}; set fsGroup in "
            "podTemplate or a StorageClass that honours it"
        )
    logger.error("unexpected failure", exc_info=error)
    return FetchInternal(f"the fetch broke: {type(error).__name__}: {error}")


def _report_failure(error: Exception, options: FetchOptions) -> int:
    known = _explain(error, options)
    report_fatal(known.reason, str(known), options.source.redact)
    return ExitCode.USAGE if isinstance(known, ConfigError) else ExitCode.FETCH_FAILED
