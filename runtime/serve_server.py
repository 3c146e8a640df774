"""The server's life: listening, then not ready but still answering, then finishing, then exit status 0."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn's server with a drain: the first signal makes it not ready, and it goes on answering for a while.

    A second signal ends the waiting. The exit status is 0 where every request under way was answered.

    Args of the constructor:
        config: uvicorn's.
        drain_seconds: how long it goes on answering, so that whoever asks for readiness can turn elsewhere.
        on_drain: called when the drain begins.
        background: what runs beside the server, each until the server ends.
        on_start: told the port once the server listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_seconds: float,
        on_drain: Callable[[], None],
        background: list[Callable[[], Awaitable[Any]]],
        on_start: Callable[[int], None],
    ) -> None:
        super().__init__(config)
        self._drain_seconds, self._on_drain, self._on_start = drain_seconds, on_drain, on_start
        self._background = background
        self._draining = False
        self._tasks: list[asyncio.Task[Any]] = []

    async def startup(self, sockets: Any = None) -> None:
        """Listen, then start what runs beside."""
        await super().startup(sockets=sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._tasks = [asyncio.ensure_future(start()) for start in self._background]
            self._on_start(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: Any = None) -> None:
        """Finish what is under way, then end what runs beside."""
        await super().shutdown(sockets=sockets)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take signals while serving; unlike uvicorn's own, do not raise them again when all is finished."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; at a second signal, end it; at a third, stop at once."""
        if self.should_exit:
            self.force_exit = True
        elif self._draining or not self.started:
            self.should_exit = True
        else:
            self._draining = True
            self._on_drain()
            self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True
