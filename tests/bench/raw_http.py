"""HTTP/1.1 by hand, for clients that must cost little or leave at a certain byte."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass


def post(path: str, body: bytes, *, close: bool = False) -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    return head.encode() + (b"Connection: close\r\n\r\n" if close else b"\r\n") + body


def get(path: str) -> bytes:
    """A whole request."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


@dataclass(frozen=True)
class Answer:
    """A whole answer; `is_whole` where a body in chunks came to its end."""

    status: int
    body: bytes
    is_whole: bool


class Connection:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def exchange(self, raw: bytes) -> tuple[int, bytes]:
        """Send a request, read the whole answer with a Content-Length."""
        self.writer.write(raw)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split(b" ", 2)[1]), await self.reader.readexactly(length)

    async def read_answer(self) -> Answer:
        """All there is until the server closes."""
        raw = await self.reader.read(-1)
        head, _, body = raw.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head else 0
        if b"transfer-encoding: chunked" not in head.lower():
            return Answer(status, body, is_whole=bool(head))
        return Answer(status, b"".join(parts := _chunks(body)), is_whole=parts[-1:] == [b""])

    async def read_head(self) -> int:
        """The status; what follows is the body."""
        return int((await self.reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])

    async def chunks(self) -> AsyncIterator[bytes]:
        """Those of a body as they come, to its last."""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]

    def leave(self) -> None:
        """Close at once, whatever is on its way."""
        self.writer.transport.abort()


def _chunks(body: bytes) -> list[bytes]:
    """The chunks of a body (RFC 9112, 7.1), the last one empty where it is whole."""
    chunks: list[bytes] = []
    while body:
        size, found, body = body.partition(b"\r\n")
        if not found:
            break
        length = int(size, 16)
        chunks.append(body[:length])
        body = body[length + 2 :]
    return chunks
