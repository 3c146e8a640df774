"""Answers from worker threads reach the loop, whichever way a request ends."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

from engineworks.runtime.serve_bridge import Bridge


def test_answers_and_errors_of_many_threads_all_arrive() -> None:
    async def ask() -> list[object]:
        bridge = Bridge(asyncio.get_running_loop())
        futures = [Future[int]() for _ in range(200)]
        waiters = [bridge.wait(future) for future in futures]

        def answer(part: list["Future[int]"]) -> None:
            for future in part:
                number = futures.index(future)
                if number % 10 == 3:
                    future.set_exception(ValueError(number))
                else:
                    future.set_result(number)

        threads = [threading.Thread(target=answer, args=(futures[start::4],)) for start in range(4)]
        for thread in threads:
            thread.start()
        found = await asyncio.gather(*waiters, return_exceptions=True)
        for thread in threads:
            thread.join()
        return list(found)

    found = asyncio.run(ask())
    assert [one if isinstance(one, int) else "error" for one in found] == [
        "error" if number % 10 == 3 else number for number in range(200)
    ]


def test_who_gives_up_cancels_what_still_waits() -> None:
    async def give_up() -> bool:
        future = Future[int]()
        waiter = Bridge(asyncio.get_running_loop()).wait(future)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await asyncio.sleep(0)
        return future.cancelled()

    assert asyncio.run(give_up())


def test_an_answer_after_the_loop_is_closed_is_dropped() -> None:
    future = Future[int]()

    async def wait() -> None:
        Bridge(asyncio.get_running_loop()).wait(future)

    asyncio.run(wait())
    future.set_result(1)
