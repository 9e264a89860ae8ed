"""Gets one page over HTTP/1.1, with as little as that takes.

The scaling loop makes 3,000 such requests every five seconds for 1,000 services, on a core that
everything else shares. One GET, no redirect, no compression, no connection kept (the engine's
server closes idle ones at about the loop's own interval). httptools, which is llhttp, reads the
answer.
"""

from __future__ import annotations

import asyncio
from typing import cast
from urllib.parse import urlsplit

import httptools


class BadAnswer(Exception):
    """What came is no page; the message completes the sentence "pod x ..."."""


async def get(url: str, max_bytes: int) -> bytes:
    """The page's bytes; `max_bytes` counts headers too. Raises BadAnswer, OSError; the deadline is
    the caller's."""
    parts = urlsplit(url)
    request = (
        f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/plain\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    answer = _Answer(request.encode("ascii"), max_bytes, loop.create_future())
    host, port = parts.hostname or "", parts.port or 80
    transport, _ = await loop.create_connection(lambda: answer, host, port)
    try:
        return await answer.page
    finally:
        transport.abort()


class _Answer(asyncio.Protocol):
    """One connection; `page` is set once everything has come.

    Methods without a docstring are asyncio's and httptools' callbacks.
    """

    def __init__(self, request: bytes, max_bytes: int, page: asyncio.Future[bytes]) -> None:
        self.page = page
        self._request = request
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._ends_with_connection = False
        self._delimited = False
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as uvloop's transports are none of asyncio's classes.
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.page.done():
            return
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            self._fail(f"answered more than {self._max_bytes} bytes")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(str(cause) if isinstance(cause, BadAnswer) else f"cannot be read: {cause}")
        except httptools.HttpParserError as error:
            if not self.page.done():  # what follows a whole page is not ours to judge
                self._fail(f"cannot be read: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.page.done():
            return
        if exc is not None:
            self._fail(f"cannot be read: {exc or type(exc).__name__}")
        elif self._ends_with_connection:
            self.on_message_complete()
        else:
            self._fail("cannot be read: the connection ended before the page did")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._delimited = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            raise BadAnswer(f"answered {status}")
        self._ends_with_connection = not self._delimited

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self.page.done():
            self.page.set_result(b"".join(self._body))

    def _fail(self, why: str) -> None:
        self.page.set_exception(BadAnswer(why))
