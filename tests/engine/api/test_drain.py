"""SIGTERM: what was accepted is finished or told, and the process ends with 0."""

import asyncio
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from quire_engine.api.drain import Drain
from quire_engine.api.errors import ApiError, Unavailable

SLOW = {"FAKE_STEP_SECONDS": "0.01"}


def post(server: Any, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.url + "/v1/completions", json=body, timeout=30)


def test_running_and_queued_requests_finish_and_new_ones_are_turned_away(
    launch_server: Any,
) -> None:
    server = launch_server(environment=SLOW, max_num_seqs=2)
    body = {"prompt": "hello", "max_tokens": 60}
    with ThreadPoolExecutor(6) as pool:
        accepted = [pool.submit(post, server, body) for _ in range(6)]
        server.eventually(lambda: len(server.core_lines("add")) == 6)
        server.process.send_signal(signal.SIGTERM)
        server.eventually(lambda: server.get("/ready").status_code == 503)
        assert server.get("/ready").json()["reason"] == "Draining"
        assert server.get("/health").status_code == 200
        refused = server.post("/v1/completions", body)
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "shutting_down"
        answers = [answer.result() for answer in accepted]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert all(answer.json()["usage"]["completion_tokens"] == 60 for answer in answers)
    assert server.process.wait(10) == 0
    assert server.core_lines("shutdown")
    assert "drained aborted=0" in server.stderr.read_text()


def test_after_the_timeout_the_rest_is_told_and_the_process_ends_with_0(
    launch_server: Any,
) -> None:
    server = launch_server(environment=SLOW, shutdown_timeout=0.3)
    body = {"prompt": "hello", "max_tokens": 4000}
    started = threading.Event()

    def read_stream() -> str:
        text = ""
        with httpx.stream(
            "POST", server.url + "/v1/completions", json={**body, "stream": True}, timeout=30
        ) as response:
            for part in response.iter_text():
                text += part
                started.set()
        return text

    with ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(read_stream)
        whole = pool.submit(post, server, body)
        assert started.wait(10)
        server.eventually(lambda: len(server.core_lines("add")) == 2)
        server.process.send_signal(signal.SIGTERM)
        assert whole.result().status_code == 503
        last = streamed.result().rstrip().rsplit("\n\n", 1)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert server.process.wait(10) == 0
    assert "drained aborted=2" in server.stderr.read_text()
    assert len(server.core_lines("abort")) == 2


def test_a_second_signal_does_not_wait(launch_server: Any) -> None:
    server = launch_server(environment=SLOW)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, {"prompt": "hello", "max_tokens": 4000})
        server.eventually(lambda: len(server.core_lines("add")) == 1)
        server.process.send_signal(signal.SIGTERM)
        server.eventually(lambda: server.get("/ready").json()["reason"] == "Draining")
        server.process.send_signal(signal.SIGINT)
        assert answer.result().status_code == 503
    assert server.process.wait(10) == 0


async def test_an_idle_server_drains_at_once() -> None:
    drain = Drain(timeout=1000)
    drain.signal()
    assert await drain.run(lambda error: pytest.fail("nothing to fail")) == 0


async def test_requests_are_counted_to_their_end() -> None:
    drain = Drain(timeout=1000)
    with drain.request():
        drain.signal()
        with pytest.raises(Unavailable), drain.request():
            pass
        running = asyncio.create_task(drain.run(lambda error: pytest.fail("it had time")))
        await asyncio.sleep(0)
        assert not running.done()
    assert await running == 0


async def test_what_does_not_finish_is_failed_and_waited_for() -> None:
    drain = Drain(timeout=0)
    failed: list[ApiError] = []
    done = asyncio.Event()

    def fail_all(error: ApiError) -> int:
        failed.append(error)
        done.set()
        return 3

    async def request() -> None:
        with drain.request():
            await done.wait()

    open_request = asyncio.create_task(request())
    await asyncio.sleep(0)
    drain.signal()
    assert await drain.run(fail_all) == 3
    assert open_request.done()
    assert failed[0].close
