"""What must be let go in a forked child: its parent's threads are not there, and their locks may be held for ever.

ONNX Runtime and CUDA do not survive a fork: a run in the child would wait for threads that do not exist, and so would
freeing the session. So the child abandons what it inherited; a session that it loads itself is whole.
"""

import ctypes
import os
import sys
import weakref
from typing import Protocol


class Abandonable(Protocol):
    """What has threads, locks or native memory that a forked child cannot use."""

    def abandon(self) -> None:
        """Let go of everything, take no lock, free nothing; every later use raises an error of ours."""


_alive: "weakref.WeakSet[Abandonable]" = weakref.WeakSet()


def abandon_after_fork(thing: Abandonable) -> None:
    """Have ``thing.abandon()`` called in every child that is forked while it lives."""
    _alive.add(thing)


def _abandon_all() -> None:
    inherited = list(_alive)
    for thing in inherited:
        thing.abandon()
    if inherited and "onnxruntime" in sys.modules:
        _end_without_native_destructors()


def _end_without_native_destructors() -> None:
    """Have this process flush C's streams and end as soon as Python has; with its status.

    A forked child that inherited onnxruntime hangs when it ends: since 1.31 the import alone starts a thread, which
    ONNX Runtime's destructors wait for (microsoft/onnxruntime, pull request 31961, tells of their kind).
    """
    try:
        libc = ctypes.CDLL(None)
        at_exit, run_last, end, flush = libc.__cxa_atexit, libc.on_exit, libc._exit, libc.fflush
    except (OSError, AttributeError):  # on_exit is glibc's
        return
    run_last(end, None)  # called in the reverse order: this ends the process, before the destructors registered so far
    at_exit(flush, None, None)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_abandon_all)
