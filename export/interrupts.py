"""Hold Ctrl-C back while libraries start, and let a long search end with what it has.

An interrupt that arrives inside the C++ start-up of torch or of a compiler's bindings ends the process with an abort
and no word; held back for that second, it is an ordinary KeyboardInterrupt.
"""

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """While active, a SIGINT is kept, and raised as KeyboardInterrupt at the end; in other threads nothing changes."""
    pressed: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    before = signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def import_tools() -> None:
    """Import what an export needs, once, with interrupts held back."""
    with interrupts_held_back():
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import torch  # noqa: F401
    if not gc.isenabled():  # the command: what the libraries made is never garbage, and need not be looked at again
        gc.freeze()


@contextmanager
def first_interrupt_asks() -> Iterator[Callable[[], bool]]:
    """While active, the first SIGINT is only noted and the second raises KeyboardInterrupt.

    Yields:
        What tells whether there was one: to be asked now and then. In other threads nothing changes, and it says no.
    """
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
