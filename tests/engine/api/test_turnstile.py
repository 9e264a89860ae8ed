"""So many requests begin in one turn of the event loop, and all of them in order."""

import asyncio

from quire_engine.api.turnstile import Turnstile


async def test_so_many_begin_in_a_turn_and_the_others_in_order() -> None:
    turnstile, begun, turn = Turnstile(2), list[tuple[int, int]](), 0

    async def begin(number: int) -> None:
        await turnstile.enter()
        begun.append((turn, number))

    tasks = [asyncio.create_task(begin(number)) for number in range(7)]
    while not all(task.done() for task in tasks):
        turn += 1
        assert turn < 100
        await asyncio.sleep(0)
    assert [number for _, number in begun] == list(range(7))
    turns = [turn for turn, _ in begun]
    assert max(map(turns.count, turns)) == 2
    assert turns[:2] == [1, 1], "where there is room nobody waits"


async def test_a_request_that_is_given_up_takes_nobodys_turn() -> None:
    turnstile = Turnstile(1)
    await turnstile.enter()
    given_up, waiting = (asyncio.create_task(turnstile.enter()) for _ in range(2))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait_for(waiting, 5)


async def test_a_turn_without_requests_leaves_nothing_to_do() -> None:
    turnstile = Turnstile(1)
    for _ in range(3):
        await turnstile.enter()
        for _ in range(3):
            await asyncio.sleep(0)
    assert turnstile._next_turn is None
