"""A connection sends once a turn: everything, in order, and nothing after its end."""

import asyncio

import pytest

from quire_engine.api.gathering import GatheringTransport


class Wire(asyncio.Transport):
    """What a connection was told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes | str] = []
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._is_closing, "uvloop raises where the handle is closed"
        self.told.append(bytes(data))

    def close(self) -> None:
        self._is_closing = True
        self.told.append("close")

    def abort(self) -> None:
        self._is_closing = True
        self.told.append("abort")

    def is_closing(self) -> bool:
        return self._is_closing


@pytest.fixture
async def wire() -> Wire:
    return Wire()


async def a_turn() -> None:
    await asyncio.sleep(0)


async def test_what_is_written_in_a_turn_goes_out_as_one(wire: Wire) -> None:
    connection = GatheringTransport(wire)
    connection.write(b"head")
    connection.write(bytearray(b" body"))
    assert wire.told == []
    await a_turn()
    assert wire.told == [b"head body"]
    connection.write(b"more")
    await a_turn()
    await a_turn()
    assert wire.told == [b"head body", b"more"]


async def test_a_close_sends_what_was_written_before_it(wire: Wire) -> None:
    connection = GatheringTransport(wire)
    connection.write(b"last words")
    connection.close()
    assert connection.is_closing()
    await a_turn()
    assert wire.told == [b"last words", "close"]


async def test_an_abort_sends_nothing_more(wire: Wire) -> None:
    connection = GatheringTransport(wire)
    connection.write(b"unsent")
    connection.abort()
    await a_turn()
    assert wire.told == ["abort"]


async def test_nothing_is_written_to_a_connection_that_the_client_closed(wire: Wire) -> None:
    connection = GatheringTransport(wire)
    connection.write(b"too late")
    wire.close()
    await a_turn()
    connection.close()
    assert wire.told == ["close", "close"]
