"""Answers from worker threads to the event loop, many at one wake-up.

Waking a loop from another thread costs a system call; under load the answers of a whole batch come through one.
"""

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class Bridge:
    """Turns futures of worker threads into ones that the loop's tasks await."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._woken = False

    def wait(self, future: "Future[Any]") -> "asyncio.Future[Any]":
        """Return a future of the loop that ends as the worker's does; cancelling it cancels what still waits."""
        waiter = self._loop.create_future()

        def done(ended: "Future[Any]") -> None:
            self._ready.append((waiter, ended))
            if not self._woken:
                self._woken = True
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    self._loop.call_soon_threadsafe(self._deliver)

        def gone(ended: "asyncio.Future[Any]") -> None:
            if ended.cancelled():
                future.cancel()

        future.add_done_callback(done)
        waiter.add_done_callback(gone)
        return waiter

    def _deliver(self) -> None:
        self._woken = False  # before the deque is emptied: who appends after that wakes the loop again
        while self._ready:
            waiter, ended = self._ready.popleft()
            if waiter.done():
                continue
            if ended.cancelled():
                waiter.cancel()
            elif (error := ended.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(ended.result())
