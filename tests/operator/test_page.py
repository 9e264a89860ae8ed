"""One page over HTTP, from servers that speak it in every way, and from some that do not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from quire_operator import page
from quire_operator.page import BadAnswer

MAX_BYTES = 1000
OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def answering(*pieces: bytes, close: bool = True) -> AsyncIterator[str]:
    """A server that sends these pieces to whoever has asked; without `close` it then hangs."""
    asked: list[bytes] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        with suppress(ConnectionError):  # it has heard enough
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if not close:
                await reader.read()
        await _close(writer)
        over.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"http://127.0.0.1:{port}/metrics"
        await over.wait()
    assert asked[0].startswith(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:"), asked
    assert b"\r\nConnection: close\r\n" in asked[0]


async def _close(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("pieces", "close"),
    [
        ((OK + b"Content-Length: 5\r\n\r\n", b"he", b"llo"), False),
        ((OK + b"Content-Length: 5\r\n\r\nhello and more",), False),
        ((OK + b"content-length:5\r\n\r", b"\nhello"), False),
        ((OK + b"\r\nhe", b"llo"), True),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",), False),
        ((OK + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhel", b"lo\r\n0\r", b"\n\r\n"), False),
    ],
)
async def test_a_page_however_it_is_delimited(pieces: tuple[bytes, ...], close: bool) -> None:
    async with answering(*pieces, close=close) as url:
        assert await page.get(url, MAX_BYTES) == b"hello"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "ended before"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "Expected HTTP"),
        (b"x" * 100_000, "more than 1000 bytes"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nhello", "answered 503"),
        (OK + b"Content-Length: 6\r\n\r\nhello", "ended before"),
        (OK + b"Content-Length: many\r\n\r\nhello", "Invalid character in Content-Length"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "ended before"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n0\r\n\r\n",
            "Invalid character in chunk size",
        ),
        (OK + b"\r\n" + b"x" * (MAX_BYTES + 1), "more than 1000 bytes"),
    ],
)
async def test_what_is_no_page_says_why(answer: bytes, why: str) -> None:
    async with answering(answer) as url:
        with pytest.raises(BadAnswer, match=why):
            await page.get(url, MAX_BYTES)


async def test_a_deadline_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            await reader.read()
        await _close(writer)
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await page.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", MAX_BYTES)
        async with asyncio.timeout(10):
            await gone.wait()
