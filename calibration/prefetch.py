"""Let another thread make the next items while this one works on the last."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = 0.1  # seconds between two looks whether the reader has left


class _End:
    """The last entry of the queue: why the items end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """Yield the items in their order; at most ``depth`` wait in memory.

    What ``items`` raises is raised here, in its turn. Leaving the loop early stops the thread.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(depth)
    left = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, waiting, left), name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        thread.join()


def _fill(items: Iterable[T], waiting: "queue.Queue[T | _End]", left: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not _put(item, waiting, left):
                return
    except BaseException as raised:  # handed over to the reader
        error = raised
    _put(_End(error), waiting, left)


def _put(item: "T | _End", waiting: "queue.Queue[T | _End]", left: threading.Event) -> bool:
    while not left.is_set():
        try:
            waiting.put(item, timeout=_PATIENCE)
            return True
        except queue.Full:
            continue
    return False
