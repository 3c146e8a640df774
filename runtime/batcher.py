"""Requests that come from many threads leave as few batches, and none waits longer than it must.

An idle worker takes a request at once. What arrives while all workers are busy piles up, in order, and leaves as one
batch when one is free: load makes the batches, and no timer does. A batch that fails is run again request by request,
so that a bad one fails alone.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import BackendError, DeadlineError, EngineworksError, QueueFullError
from engineworks.runtime.fork import abandon_after_fork
from engineworks.runtime.stats import Tally

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array], int], list[Array]]
"""Runs checked arrays of so many rows; returns the outputs."""
Finish = Callable[[list[Array]], Any]
"""Makes of the outputs what the future is to hold."""


@dataclass(frozen=True, eq=False, slots=True)
class Ask:
    """A request for ``submit_all``; its fields are the arguments of ``submit``."""

    arrays: dict[str, Array]
    rows: int
    finish: Finish
    timeout: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class _Request:
    arrays: dict[str, Array]
    rows: int
    finish: Finish
    deadline: float | None
    future: "Future[Any]"


class Batcher:
    """A bounded queue before a few worker threads, which start with the first request and end with ``close``.

    Args of the constructor:
        run: what a batch is given to, from any worker.
        largest: rows in a batch at most.
        joins: whether requests may share a batch; not where the batch size is fixed.
        capacity: requests that may wait.
        workers: batches that may be under way at once.
        tally: where requests are counted.
        clock: seconds that only grow; for tests.
    """

    def __init__(
        self,
        run: Run,
        *,
        largest: int,
        joins: bool,
        capacity: int,
        workers: int,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._largest, self._joins, self._tally = run, largest, joins, tally
        self._capacity, self._workers, self._clock = capacity, workers, clock
        self._queue: deque[_Request] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._lock = threading.Lock()  # taken as itself: an interrupt cannot leave it taken, as it can a Condition
        self._change = threading.Condition(self._lock)
        abandon_after_fork(self)

    def submit(
        self, arrays: dict[str, Array], rows: int, finish: Finish = list, timeout: float | None = None
    ) -> "Future[Any]":
        """Queue one request.

        Args:
            arrays: checked, by name; left as they are until the future is done.
            rows: how many there are; at most the largest batch.
            finish: makes of the outputs what the future is to hold.
            timeout: seconds after which a request that still waits is given up; None for never.

        Returns:
            A future of what ``finish`` returns; cancelling it while it waits takes the request out.

        Raises:
            QueueFullError: as many requests wait as may.
            BackendError: the batcher is closed, or no thread can be started.
        """
        deadline = None if timeout is None else self._clock() + timeout
        request = _Request(arrays, rows, finish, deadline, Future())
        with self._lock:
            self._admit(1)
            self._queue.append(request)
            self._change.notify()
        self._tally.add("submitted")
        return request.future

    def submit_all(self, asked: Sequence[Ask]) -> "list[Future[Any]]":
        """Queue requests that somebody has gathered already: all or none, and as one batch where they fit one.

        Raises:
            QueueFullError: not so many may wait; none was queued.
            BackendError: as ``submit``.
        """
        now = self._clock()
        requests = [
            _Request(ask.arrays, ask.rows, ask.finish, None if ask.timeout is None else now + ask.timeout, Future())
            for ask in asked
        ]
        with self._lock:
            self._admit(len(requests))
            self._queue.extend(requests)
            self._change.notify()
        self._tally.add("submitted", len(requests))
        return [request.future for request in requests]

    def __len__(self) -> int:
        """Tell how many requests wait."""
        return len(self._queue)

    def close(self) -> None:
        """Refuse new requests, finish those that were taken, end the threads; calling it again does nothing.

        Called by a worker (in a future's callback), it does not wait for that worker, which ends by itself.
        """
        with self._lock:
            self._closed = True
            self._change.notify_all()
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def abandon(self) -> None:
        """In a forked child: the workers are not there, and what waited is the parent's to answer."""
        self._closed, self._threads, self._queue = True, [], deque()
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)

    def _admit(self, count: int) -> None:
        """See that so many more may wait, and that somebody is there to run them; the lock is held."""
        if self._closed:
            raise BackendError("submit: the session is closed. Load the bundle again.")
        if len(self._queue) + count > self._capacity:
            self._drop_cancelled()
        if len(self._queue) + count > self._capacity:
            self._tally.add("refused", count)
            raise QueueFullError(f"submit: {self._capacity} requests wait already. Try again when some are done.")
        self._ensure_worker()

    def _ensure_worker(self) -> None:
        """Start a worker where none is free and one more may be; a dead one is replaced."""
        if self._idle > len(self._queue):
            return
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= self._workers:
            return
        name = f"engineworks-batcher-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise BackendError(
                    f"submit: no thread can be started ({error}). Mend that, or call infer()."
                ) from error
            return
        self._threads.append(thread)

    def _work(self) -> None:
        batch, late = list[_Request](), list[_Request]()
        going = True
        while going:
            try:
                going = self._take(batch, late)
                self._refuse(late)
                if batch:
                    self._serve(batch)
            except BaseException as error:  # out of memory, or one raised into this thread: answer, and work on
                for request in (*batch, *late):
                    if not request.future.done():
                        _fail(request, error)
                del error
            finally:
                batch.clear()  # or the last arrays live on while the worker waits
                late.clear()

    def _take(self, batch: list[_Request], late: list[_Request]) -> bool:
        """Wait for requests and fill in a batch of them, and those that came too late; False when closed and empty."""
        with self._lock:
            while not self._queue:
                if self._closed:
                    return False
                self._idle += 1
                try:
                    self._change.wait()
                finally:
                    self._idle -= 1
            self._fill(batch, late)
            return True

    def _fill(self, batch: list[_Request], late: list[_Request]) -> None:
        rows, now = 0, self._clock()
        while self._queue and self._fits(self._queue[0], batch, rows):
            request = self._queue.popleft()
            if not request.future.set_running_or_notify_cancel():
                self._tally.add("cancelled")
            elif request.deadline is not None and now >= request.deadline:
                late.append(request)
            else:
                batch.append(request)
                rows += request.rows

    def _refuse(self, late: list[_Request]) -> None:
        for request in late:
            self._tally.add("expired")
            _fail(request, DeadlineError("submit: the request's time passed while it waited; it was not run."))

    def _fits(self, request: _Request, batch: Sequence[_Request], rows: int) -> bool:
        if not batch:
            return True
        return self._joins and rows + request.rows <= self._largest and _alike(request.arrays, batch[0].arrays)

    def _drop_cancelled(self) -> None:
        kept = [request for request in self._queue if not request.future.cancelled()]
        self._tally.add("cancelled", len(self._queue) - len(kept))
        self._queue = deque(kept)

    def _serve(self, batch: list[_Request]) -> None:
        """Answer every request of the batch, whatever happens on the way."""
        try:
            answers = self._answers(batch)
        except BaseException as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for request in batch:
                self._serve([request])
            return
        for request, answer in zip(batch, answers, strict=True):
            _finish(request, answer)

    def _answers(self, batch: Sequence[_Request]) -> list[list[Array]]:
        if len(batch) == 1:
            return [self._run(batch[0].arrays, batch[0].rows)]
        joined = {name: np.concatenate([request.arrays[name] for request in batch]) for name in batch[0].arrays}
        outputs = self._run(joined, sum(request.rows for request in batch))
        ends = np.cumsum([request.rows for request in batch])
        return [
            [output[end - request.rows : end].copy() for output in outputs]  # its own memory, not the whole batch's
            for request, end in zip(batch, ends, strict=True)
        ]


def _alike(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(array.shape[1:] == other[name].shape[1:] for name, array in one.items())


def _finish(request: _Request, answer: list[Array]) -> None:
    try:
        value = request.finish(answer)
    except BaseException as error:
        _fail(request, error)
        return
    _settle(request.future.set_result, value)


def _fail(request: _Request, error: BaseException) -> None:
    if not isinstance(error, EngineworksError):
        what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        cause, error = (
            error,
            BackendError(f"submit: the request could not be run ({what}). Call infer() to see it alone."),
        )
        error.__cause__ = cause
    _settle(request.future.set_exception, error)


def _settle(settle: Callable[[Any], None], value: Any) -> None:
    """Settle a future; what its callbacks raise is theirs, and may not end the worker."""
    try:
        settle(value)
    except BaseException:
        logging.getLogger("engineworks.runtime").exception("a callback of a submitted request raised")
