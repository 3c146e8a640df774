"""Hold Ctrl-C back while libraries start.

An interrupt that arrives inside the C++ start-up of torch or of a compiler's bindings ends the process with an abort
and no word; held back for that second, it is an ordinary KeyboardInterrupt.
"""

import gc
import signal
import threading
from collections.abc import Iterator
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
