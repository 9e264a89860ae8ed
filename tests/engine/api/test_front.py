"""Keys, and bodies and heads that are too long."""

import asyncio
import gc
import weakref
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from quire_engine.api.drain import Drain
from quire_engine.api.front import Front

KEYS = ("first-key", "second-key")
BODY = {"prompt": "hello", "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded(launch_server: Any) -> Any:
    return launch_server(api_keys=KEYS, max_body_bytes=2000, max_header_bytes=4096)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(guarded: Any, key: str) -> None:
    answer = guarded.post("/v1/completions", BODY, Authorization=f"Bearer {key}")
    assert answer.status_code == 200


@pytest.mark.parametrize("sent", [None, "Bearer wrong", "Bearer", "first-key", "Basic first-key"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/tokenize"])
def test_without_a_key_nothing_opens(guarded: Any, path: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    answer = guarded.client.get(guarded.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "first-key" not in answer.text


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version"])
def test_probes_need_no_key(guarded: Any, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("size", [2001, 7000, 100_000])
def test_a_body_that_is_too_long_is_refused(guarded: Any, size: int) -> None:
    key = {"Authorization": "Bearer first-key"}
    for content in (b"x" * size, iter([b"x" * 1000] * (size // 1000 + 1))):
        answer = httpx.post(guarded.url + "/v1/completions", content=content, headers=key)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
        assert answer.headers["connection"] == "close"


async def exchange(server: Any, raw: bytes, *, then: bytes = b"") -> bytes:
    """What the server writes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    writer.write(raw)
    if then:
        await writer.drain()
        writer.write(then)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 500 + b"\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 5000,
    ],
)
async def test_a_head_that_is_too_long_is_refused(guarded: Any, head: bytes) -> None:
    answer = await exchange(guarded, head)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"head_too_large"' in answer


async def test_what_is_no_http_is_refused_in_our_shape(guarded: Any) -> None:
    answer = await exchange(guarded, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{' in answer


async def test_many_requests_on_one_connection_do_not_add_up(guarded: Any) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Some: " + b"a" * 1000 + b"\r\n\r\n"
    last = one.replace(b"Host: x", b"Host: x\r\nConnection: close")
    answer = await exchange(guarded, one * 9 + last)
    assert answer.count(b"HTTP/1.1 200 ") == 10


async def test_a_client_that_leaves_inside_its_body_leaves_nothing_behind(server: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()
    assert server.get("/health").status_code == 200
    assert "Traceback" not in server.stderr.read_text()


class HttpCycle:
    """Scope, receive and send of one request hang together as uvicorn's do."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.scope: Scope = {
            "type": "http", "path": "/v1/models", "headers": headers, "state": {}
        }  # fmt: skip

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None: ...


async def answer_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})


@pytest.mark.parametrize("header", [(b"authorization", b"Bearer first-key"), (b"x", b"y")])
async def test_an_answered_request_is_gone_without_the_garbage_collector(header: Any) -> None:
    """A connection of each that lay around until a collection made the process grow."""
    front = Front(answer_nothing, Drain(timeout=1), KEYS)
    gc.disable()
    try:
        cycle = HttpCycle(header)
        gone = weakref.ref(cycle)
        await front(cycle.scope, cycle.receive, cycle.send)
        del cycle
        assert gone() is None
    finally:
        gc.enable()
