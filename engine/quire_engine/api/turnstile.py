"""How many requests may begin before the event loop looks at anything else."""

import asyncio
from collections import deque


class Turnstile:
    """Lets so many in in one turn of the event loop; the others wait for the next turns, in order.

    A request takes up to a millisecond to begin (its body is checked, its prompt tokenized), and
    the loop begins all that have arrived: of a thousand that come at once each would keep the
    streams, the probes and everybody else waiting.
    """

    def __init__(self, num_a_turn: int) -> None:
        self._num_a_turn = num_a_turn
        self._num_left = num_a_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next_turn: asyncio.Handle | None = None

    async def enter(self) -> None:
        """Returns when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if self._next_turn is None:
            self._next_turn = loop.call_soon(self._turn)
        if self._num_left:
            self._num_left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _turn(self) -> None:
        self._num_left, self._next_turn = self._num_a_turn, None
        while self._waiting and self._num_left:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was given up
                turn.set_result(None)
                self._num_left -= 1
        if self._waiting:
            self._next_turn = asyncio.get_running_loop().call_soon(self._turn)
