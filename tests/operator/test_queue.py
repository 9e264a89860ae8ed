"""The work queue, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from quire_operator.names import Key
from quire_operator.queue import FIRST_SECONDS, LONGEST_SECONDS, WorkQueue
from quire_operator.testing_time import now, run

A, B = Key("ns", "a"), Key("ns", "b")


async def working(
    queue: WorkQueue,
    work: Callable[[Key], Awaitable[float | None]],
    seconds: float,
    workers: int = 1,
) -> None:
    tasks = [asyncio.ensure_future(queue.work(work)) for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_key_waits_once_however_often_it_is_added() -> None:
    async def scenario() -> None:
        queue, ran = WorkQueue(), []

        async def work(key: Key) -> None:
            ran.append(key)

        for _ in range(5):
            queue.add(A)
        queue.add(B)
        assert len(queue) == 2
        await working(queue, work, 1)
        assert ran == [A, B]

    run(scenario)


def test_a_key_woken_while_it_runs_runs_once_more_and_never_twice_at_a_time() -> None:
    async def scenario() -> None:
        queue, running, ran = WorkQueue(), [0], []

        async def work(key: Key) -> None:
            running[0] += 1
            assert running[0] == 1
            if len(ran) == 0:
                queue.add(A)
                queue.add(A)
            await asyncio.sleep(1)
            ran.append(now())
            running[0] -= 1

        queue.add(A)
        await working(queue, work, 10, workers=4)
        assert ran == [1.0, 2.0]

    run(scenario)


def test_workers_take_different_keys_at_the_same_time() -> None:
    async def scenario() -> None:
        queue, ended = WorkQueue(), []

        async def work(key: Key) -> None:
            await asyncio.sleep(3)
            ended.append((key, now()))

        queue.add(A)
        queue.add(B)
        await working(queue, work, 4, workers=2)
        assert ended == [(A, 3.0), (B, 3.0)]

    run(scenario)


def test_failures_double_the_delay_up_to_a_limit_and_a_success_forgets_them() -> None:
    async def scenario() -> None:
        queue, tries = WorkQueue(), []

        async def work(key: Key) -> None:
            tries.append(now())
            if len(tries) <= 12:
                raise ValueError("not yet")

        queue.add(A)
        await working(queue, work, 1000)
        gaps = [b - a for a, b in pairwise(tries)]
        assert gaps[:4] == pytest.approx([FIRST_SECONDS * 2**i for i in range(4)])
        assert max(gaps) == LONGEST_SECONDS
        assert len(tries) == 13
        assert queue.failures(A) == 0

    run(scenario)


def test_a_failing_key_that_keeps_being_woken_keeps_its_backoff() -> None:
    async def scenario() -> None:
        queue, tries = WorkQueue(), []

        async def work(key: Key) -> None:
            tries.append(now())
            queue.add(A)  # an event arrives while it runs
            raise ValueError("broken")

        queue.add(A)
        await working(queue, work, 10)
        assert len(tries) < 8

    run(scenario)


def test_one_keys_failure_does_not_delay_another() -> None:
    async def scenario() -> None:
        queue, ran = WorkQueue(), []

        async def work(key: Key) -> None:
            if key == A:
                raise ValueError("broken")
            ran.append(now())

        queue.add(A)
        queue.add(B)
        await working(queue, work, 1)
        assert ran == [0.0]

    run(scenario)


def test_a_key_comes_back_after_the_delay_that_it_asks_for() -> None:
    async def scenario() -> None:
        queue, ran = WorkQueue(), []

        async def work(key: Key) -> float | None:
            ran.append(now())
            return 5.0 if len(ran) < 3 else None

        queue.add(A)
        await working(queue, work, 100)
        assert ran == pytest.approx([0.0, 5.0, 10.0])

    run(scenario)


def test_an_event_runs_a_key_sooner_than_its_delay_and_only_once() -> None:
    async def scenario() -> None:
        queue, ran = WorkQueue(), []

        async def work(key: Key) -> None:
            ran.append(now())

        queue.add_after(A, 10)
        asyncio.get_running_loop().call_later(2, queue.add, A)
        await working(queue, work, 30)
        assert ran == [2.0]

    run(scenario)


def test_of_two_delays_the_sooner_counts() -> None:
    async def scenario() -> None:
        queue, ran = WorkQueue(), []

        async def work(key: Key) -> None:
            ran.append(now())

        queue.add_after(A, 10)
        queue.add_after(A, 3)
        queue.add_after(A, 7)
        await working(queue, work, 30)
        assert ran == [3.0]

    run(scenario)
