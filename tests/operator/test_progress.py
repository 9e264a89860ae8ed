"""Progress of a fetch: asked at most every 5 s, and never a reason to fail."""

import pytest
from aiohttp import ClientSession, web

from quire_operator import names
from quire_operator.progress import FRESH_SECONDS, ProgressReader

MOVING = {"phase": "downloading", "bytesTotal": 100, "bytesPerSecond": 10.0}


class Fetch:
    """A fetch pod's /progress on this machine."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: dict[str, object] | str = {**MOVING}

    async def progress(self, _request: web.Request) -> web.Response:
        self.asked += 1
        if isinstance(self.answer, str):
            return web.Response(text=self.answer)
        return web.json_response(self.answer)


@pytest.fixture
async def fetch(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    found = Fetch()
    app = web.Application()
    app.router.add_get("/progress", found.progress)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(names, "PROGRESS_PORT", runner.addresses[0][1])
    yield found
    await runner.cleanup()


async def test_an_answer_is_fresh_for_five_seconds(fetch: Fetch) -> None:
    async with ClientSession() as session:
        reader = ProgressReader(session)
        first = await reader.read("uid-1", "127.0.0.1", 100.0)
        assert first is not None
        assert (first.bytes_total, first.bytes_done) == (100, 0)
        fetch.answer = {"phase": "verifying", "bytesTotal": 100, "bytesDone": 100, "note": "waits"}
        assert await reader.read("uid-1", "127.0.0.1", 100.0 + FRESH_SECONDS - 0.1) == first
        assert fetch.asked == 1
        later = await reader.read("uid-1", "127.0.0.1", 100.0 + FRESH_SECONDS)
        assert later is not None
        assert (later.phase, later.note) == ("verifying", "waits")


@pytest.mark.parametrize("first", [{"phase": "listing"}, {**MOVING, "bytesPerSecond": 0.0}])
async def test_a_fetch_whose_bytes_do_not_move_yet_is_asked_again(
    fetch: Fetch, first: dict[str, object]
) -> None:
    async with ClientSession() as session:
        reader = ProgressReader(session)
        fetch.answer = first
        await reader.read("uid-1", "127.0.0.1", 100.0)
        fetch.answer = MOVING
        later = await reader.read("uid-1", "127.0.0.1", 100.1)
        assert later is not None
        assert later.bytes_per_second == 10.0


async def test_nonsense_keeps_the_last_word(fetch: Fetch) -> None:
    async with ClientSession() as session:
        reader = ProgressReader(session)
        first = await reader.read("uid-1", "127.0.0.1", 100.0)
        fetch.answer = "<html>"
        assert await reader.read("uid-1", "127.0.0.1", 110.0) == first


async def test_no_answer_is_no_progress(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PROGRESS_PORT", 1)
    async with ClientSession() as session:
        assert await ProgressReader(session).read("uid-1", "127.0.0.1", 0.0) is None


async def test_a_pod_that_gets_anothers_address_is_not_told_its_bytes(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ClientSession() as session:
        reader = ProgressReader(session)
        assert await reader.read("uid-1", "127.0.0.1", 100.0) is not None
        monkeypatch.setattr(names, "PROGRESS_PORT", 1)  # the next one does not answer yet
        assert await reader.read("uid-2", "127.0.0.1", 101.0) is None
