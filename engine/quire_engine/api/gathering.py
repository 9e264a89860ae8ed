"""A connection that sends once a turn of the event loop."""

import asyncio
from typing import Any


class GatheringTransport(asyncio.Transport):
    """What is written in one turn of the event loop goes out in the next, in one piece, right
    beside what all other connections have to send.

    uvloop writes at once, which costs a system call for an answer's head and one for its body, and
    wakes a client that reads many streams again for each of them. Wake-ups cost most of a write.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` soon. Flow control is the connection's own: it pauses the protocol."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close now; what was not sent is lost."""
        self._unsent = []
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Addresses and the like."""
        return self._transport.get_extra_info(name, default)
