"""Events of a namespace are listed once for all its services, in pages, and never too often."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from quire_operator import event_reader
from quire_operator.errors import ApiError, Denied, Unavailable
from quire_operator.event_reader import FRESH_SECONDS, LISTS_AT_ONCE, REST, EventReader
from quire_operator.kinds import Kind, Manifest
from quire_operator.testing import FakeCluster
from quire_operator.testing_endpoints import event_on


class Slow(FakeCluster):
    """A cluster that counts lists, and takes its time for them."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[str | None] = []
        self.running, self.most = 0, 0
        self.seconds = 0.0
        self.error: ApiError | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def list_pages(
        self, kind: Kind, namespace: str | None, **how: Any
    ) -> AsyncIterator[list[Manifest]]:
        self.lists.append(namespace)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        await self.answers.wait()
        self.now += self.seconds
        self.running -= 1
        if self.error is not None:
            raise self.error
        async for page in super().list_pages(kind, namespace, **how):
            yield page


def tell(cluster: FakeCluster, uid: str, reason: str, *, kind: str = "Pod", at: float = 0) -> None:
    body = {"kind": kind, "metadata": {"namespace": "ns", "name": uid, "uid": uid}}
    cluster.put(event_on(body, reason, f"{reason} of {uid}", cluster.now + at))


@pytest.fixture
def cluster() -> Slow:
    return Slow()


@pytest.fixture
def reader(cluster: Slow) -> EventReader:
    return EventReader(cluster, lambda: cluster.now)


async def test_a_thousand_services_that_ask_at_once_cost_one_list(
    cluster: Slow, reader: EventReader
) -> None:
    for n in range(1000):
        tell(cluster, f"uid-{n}", "FailedMount")
    found = await asyncio.gather(*(reader.read("ns", f"uid-{n}") for n in range(1000)))
    assert [events[0].message for events in found] == [
        f"FailedMount of uid-{n}" for n in range(1000)
    ]
    assert cluster.lists == ["ns"]


async def test_the_newest_comes_first_and_news_are_found_when_the_list_is_old(
    cluster: Slow, reader: EventReader
) -> None:
    tell(cluster, "a", "Scheduled", at=-9)
    tell(cluster, "a", "FailedMount", at=-2)
    assert [e.reason for e in await reader.read("ns", "a")] == ["FailedMount", "Scheduled"]
    tell(cluster, "a", "Pulling")
    cluster.now += FRESH_SECONDS - 0.1
    assert [e.reason for e in await reader.read("ns", "a")] == ["FailedMount", "Scheduled"]
    cluster.now += 0.1
    assert (await reader.read("ns", "a"))[0].reason == "Pulling"


async def test_a_list_that_took_long_is_not_begun_again_soon(
    cluster: Slow, reader: EventReader
) -> None:
    cluster.seconds = 4.0
    await reader.read("ns", "a")
    cluster.now += REST * 4.0 - 0.1
    await reader.read("ns", "a")
    assert len(cluster.lists) == 1
    cluster.now += 0.1
    await reader.read("ns", "a")
    assert len(cluster.lists) == 2


async def test_what_nobody_asks_for_is_not_sent(cluster: Slow, reader: EventReader) -> None:
    tell(cluster, "a", "Ready", kind="InferenceService")
    tell(cluster, "b", "Killing")
    assert await reader.read("ns", "a") == ()
    assert len(await reader.read("ns", "b")) == 1


async def test_a_warning_in_the_second_in_which_the_pod_was_scheduled_is_the_newer_word(
    cluster: Slow, reader: EventReader
) -> None:
    tell(cluster, "a", "FailedCreatePodSandBox")
    pod = {"kind": "Pod", "metadata": {"namespace": "ns", "name": "a", "uid": "a"}}
    scheduled = event_on(pod, "Scheduled", "to node0", cluster.now, kind="Normal")
    told = scheduled.pop("lastTimestamp")  # as the scheduler writes it
    cluster.put(scheduled | {"eventTime": told.replace("Z", ".670780Z")})
    found = await reader.read("ns", "a")
    assert [event.reason for event in found] == ["FailedCreatePodSandBox", "Scheduled"]


async def test_of_too_many_the_newest_are_kept(
    cluster: Slow, reader: EventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_reader, "MAX_EVENTS", 10)
    monkeypatch.setattr(event_reader, "PAGE_SIZE", 4)
    for n in range(30):
        tell(cluster, f"uid-{n}", "FailedMount", at=-((n * 7) % 30))
    found = [bool(await reader.read("ns", f"uid-{n}")) for n in range(30)]
    assert found == [(n * 7) % 30 < 10 for n in range(30)]


async def test_a_list_that_fails_leaves_what_was_known_and_is_tried_again(
    cluster: Slow, reader: EventReader
) -> None:
    tell(cluster, "a", "FailedMount")
    known = await reader.read("ns", "a")
    cluster.error = Unavailable(0, "GET events", "no answer")
    cluster.now += FRESH_SECONDS
    assert await reader.read("ns", "a") == known
    cluster.error = Denied(403, "GET events", "events is forbidden")
    cluster.now += FRESH_SECONDS
    assert await reader.read("ns", "a") == ()
    assert len(cluster.lists) == 3


async def test_who_asks_does_not_wait_for_a_slow_list_and_finds_it_later(
    cluster: Slow, reader: EventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_reader, "PATIENCE_SECONDS", 0)
    tell(cluster, "a", "FailedMount")
    cluster.answers.clear()
    assert await reader.read("ns", "a") == ()
    assert await reader.read("ns", "b") == ()
    cluster.answers.set()
    monkeypatch.undo()
    assert [event.reason for event in await reader.read("ns", "a")] == ["FailedMount"]
    assert cluster.lists == ["ns"], "the list that was begun is the one that answers"


async def test_few_namespaces_are_listed_at_a_time_and_none_is_kept_for_ever(
    cluster: Slow, reader: EventReader
) -> None:
    await asyncio.gather(*(reader.read(f"ns-{n}", "a") for n in range(40)))
    assert cluster.most == LISTS_AT_ONCE
    assert len(cluster.lists) == 40
    cluster.now += FRESH_SECONDS + event_reader.FORGET_SECONDS + 1
    await reader.read("ns", "a")
    assert len(reader._known) == 1
