"""What a plan bears of a source, and how much it reads of it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from quire_engine.fetch.errors import Corrupt, SourceUnreachable, Stalled
from quire_engine.fetch.options import SourceOptions
from quire_engine.fetch.remote import MOST_BYTES, PATIENCE_SECONDS, RemoteReader
from quire_engine.fetch.retry import TryAgain
from quire_engine.fetch.source import Digest, Listing, RemoteFile
from quire_engine.fetch.sources import OpenSpan

SILENCE = 9.5
FILE = RemoteFile("model.safetensors", MOST_BYTES * 2, Digest("sha256", "00"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FlakySource:
    """Its answers are what `answer` does, each after the seconds that it takes."""

    keeps_commits = True

    def __init__(self, answer: Callable[[], Listing]) -> None:
        self._answer = answer
        self.bytes_read = 0

    def list_files(self, revision: str | None) -> Listing:
        return self._answer()

    def connect(self) -> AbstractAsyncContextManager[OpenSpan]:
        raise AssertionError("a plan transfers nothing")

    def read(self, file: RemoteFile, span: range) -> bytes:
        self.bytes_read += len(span)
        return b""

    def close(self) -> None:
        """Nothing is held open."""


def reader(source: FlakySource, clock: Clock) -> RemoteReader:
    return RemoteReader(source, SourceOptions(), clock, clock.sleep)


def failing(clock: Clock, seconds: float, failure: TryAgain) -> Callable[[], Listing]:
    def answer() -> Listing:
        clock.now += seconds
        raise failure

    return answer


@pytest.mark.parametrize(
    ("seconds", "failure"),
    [
        (0.1, TryAgain(SourceUnreachable("HTTP 503"))),
        (0.1, TryAgain(SourceUnreachable("HTTP 429"), retry_after=2.0)),
        (0.1, TryAgain(SourceUnreachable("HTTP 429"), retry_after=300.0)),
        (SILENCE, TryAgain(Stalled("nothing came"))),
        (SILENCE, TryAgain(SourceUnreachable("no connection"), silent=True)),
    ],
)
def test_trouble_is_told_within_ten_seconds(seconds: float, failure: TryAgain) -> None:
    clock = Clock()
    begin = clock.now
    with pytest.raises(type(failure.failure)):
        reader(FlakySource(failing(clock, seconds, failure)), clock).list_files(None)
    assert clock.now - begin <= PATIENCE_SECONDS


def test_trouble_that_passes_costs_later_reads_nothing() -> None:
    clock = Clock()
    failures = iter([True, True, False] * 5)

    def answer() -> Listing:
        clock.now += 2.0
        if next(failures):
            raise TryAgain(SourceUnreachable("HTTP 503"))
        return Listing("c0ffee", ())

    remote = reader(FlakySource(answer), clock)
    for _ in range(5):
        assert remote.list_files(None).commit == "c0ffee"


def test_what_a_plan_reads_is_bounded() -> None:
    source = FlakySource(lambda: Listing("", ()))
    remote = reader(source, Clock())
    remote.read(FILE, 0, MOST_BYTES)
    with pytest.raises(Corrupt, match=r"at most 268,435,456 bytes.*model\.safetensors"):
        remote.read(FILE, MOST_BYTES, MOST_BYTES + 1)
    assert source.bytes_read == MOST_BYTES
