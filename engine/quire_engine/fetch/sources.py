"""What the fetch and the plan ask of a place that models come from, and which place a URI means."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.source import Listing, RemoteFile
from quire_engine.fetch.uri import HubUri, ModelUri, ObjectUri

OpenSpan: TypeAlias = Callable[
    [RemoteFile, range], AbstractAsyncContextManager[AsyncIterator[bytes]]
]
"""Streams these bytes of a file. It may give more than was asked for, never others. TryAgain for
what may pass, SourceChanged where the file is not the one that was listed."""


class Source(Protocol):
    """One model at one place."""

    @property
    def keeps_commits(self) -> bool:
        """Whether a commit that was listed once stays what it was."""

    def list_files(self, revision: str | None) -> Listing:
        """The files of what `revision` names now. Blocks for seconds at most.

        Raises SourceNotFound, SourceUnauthorized or Corrupt for good, TryAgain for what may pass.
        """

    def connect(self) -> AbstractAsyncContextManager[OpenSpan]:
        """Open connections for a transfer."""

    def read(self, file: RemoteFile, span: range) -> bytes:
        """A few bytes of a file, at once. TryAgain for what may pass."""

    def close(self) -> None:
        """Let go of what `read` holds open."""


def open_source(uri: ModelUri, options: SourceOptions) -> Source:
    """The source of a URI. ConfigError where it lacks a setting."""
    if isinstance(uri, HubUri):
        from quire_engine.fetch.hub import HubSource

        return HubSource(uri, options)
    if isinstance(uri, ObjectUri):
        from quire_engine.fetch.objects import ObjectSource

        return ObjectSource(uri, options)
    from quire_engine.fetch.web import WebSource

    return WebSource(uri, options)
