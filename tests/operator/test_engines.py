"""Engines' own words at /ready, and how each way of giving none is called."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web

from quire_operator import engines, names
from quire_operator.engines import EngineReader

HERE = "127.0.0.1"


@pytest.fixture
async def answers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[web.Response]]:
    """What an engine on this machine answers next; it hangs once there is nothing left."""
    found: list[web.Response] = []
    over = asyncio.Event()

    async def ready(_request: web.Request) -> web.Response:
        if not found:
            await over.wait()
            return web.Response()
        return found.pop()

    app = web.Application()
    app.router.add_get("/ready", ready)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HERE, 0).start()
    monkeypatch.setattr(names, "ENGINE_PORT", runner.addresses[0][1])
    yield found
    over.set()
    await runner.cleanup()


async def ask() -> tuple[str, str]:
    async with ClientSession() as session:
        answer = await EngineReader(session).ready("uid-1", HERE)
    return answer.reason, answer.message


async def test_its_own_words_whatever_the_status(answers: list[web.Response]) -> None:
    body = {"ready": False, "reason": "Stalled", "message": "no layer has run for 7 s"}
    answers.append(web.json_response(body, status=503))
    assert await ask() == ("Stalled", "no layer has run for 7 s")


async def test_what_is_no_engine(answers: list[web.Response]) -> None:
    answers.append(web.Response(text="<html>"))
    assert (await ask())[0] == "Strange"


async def test_no_answer_in_time(
    answers: list[web.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TIMEOUT_SECONDS", 0.05)
    assert await ask() == ("NoAnswer", "/ready gives no answer within 0.05 s")


async def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        monkeypatch.setattr(names, "ENGINE_PORT", taken.getsockname()[1])
        reason, message = await ask()
    assert reason == "Refused"
    assert message.startswith("/ready cannot be asked: ")


async def test_silence_is_remembered_for_a_while_and_of_that_pod_only(
    answers: list[web.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TIMEOUT_SECONDS", 0.05)
    now = [100.0]
    async with ClientSession() as session:
        reader = EngineReader(session, lambda: now[0])
        assert (await reader.ready("uid-1", HERE)).reason == "NoAnswer"
        loading = {"ready": False, "reason": "Loading"}
        answers += [web.json_response(loading, status=503) for _ in range(2)]
        now[0] += engines.SILENT_SECONDS - 0.1
        assert (await reader.ready("uid-1", HERE)).reason == "NoAnswer"
        assert len(answers) == 2, "it was not asked"
        assert (await reader.ready("uid-2", HERE)).reason == "Loading"
        now[0] += 0.1
        assert (await reader.ready("uid-1", HERE)).reason == "Loading"
