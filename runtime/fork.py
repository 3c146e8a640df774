"""What must be let go in a forked child: its parent's threads are not there, and their locks may be held for ever.

ONNX Runtime and CUDA do not survive a fork: a run in the child would wait for threads that do not exist, and so would
freeing the session. So the child abandons what it inherited; a session that it loads itself is whole.
"""

import os
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
    for thing in list(_alive):
        thing.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_abandon_all)
