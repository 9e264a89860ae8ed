"""uvicorn's HTTP/1.1 protocol with a bound on the request's head, and errors in OpenAI's shape.

httptools keeps what it is sent of a head until the head is complete, however long it gets: without
a bound one connection could fill the memory.
"""

import asyncio
from typing import ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quire_engine.api.errors import ApiError, HeadTooLarge, InvalidRequest
from quire_engine.api.gathering import GatheringTransport


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. uvicorn is given the class that `limited` makes."""

    max_header_bytes: ClassVar[int] = 64 * 1024
    _in_head = True
    _received_bytes = 0  # since the head began
    _too_large = False

    @classmethod
    def limited(cls, max_header_bytes: int) -> type["BoundedHttpProtocol"]:
        """This protocol with another bound."""
        return type("LimitedHttpProtocol", (cls,), {"max_header_bytes": max_header_bytes})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """uvloop's transports are asyncio's by behaviour, not by inheritance."""
        super().connection_made(GatheringTransport(cast("asyncio.Transport", transport)))

    def data_received(self, data: bytes) -> None:
        """A head that goes on and on is cut off here; one that came at once, in
        on_headers_complete.
        """
        if self._in_head:
            self._received_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._received_bytes > self.max_header_bytes:
            self._too_large = True
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_header_bytes:
            self._too_large = True
            raise ValueError("head too large")  # the parser stops, and send_400_response is called
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._received_bytes = True, 0

    def send_400_response(self, msg: str) -> None:
        """The last thing on this connection. uvicorn's own is plain text."""
        if self.transport.is_closing():
            return
        error: ApiError = InvalidRequest(
            f"a request must be HTTP/1.1, got bytes that are not: {msg}"
        )
        if self._too_large:
            error = HeadTooLarge(
                f"request line and headers must be <= {self.max_header_bytes} bytes, got more; "
                "shorten them, or raise --max-header-bytes"
            )
        body = error.body()
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        ) % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
