"""A forked child lets go of what it inherited, and ends as it should."""

import gc
import subprocess
import sys
import weakref

import pytest

from engineworks.runtime import fork


class Thing:
    def __init__(self) -> None:
        self.abandoned = 0

    def abandon(self) -> None:
        self.abandoned += 1


def test_what_is_alive_is_abandoned_and_is_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork, "_alive", weakref.WeakSet())
    monkeypatch.setattr(fork, "_end_without_native_destructors", lambda: None)
    kept, dropped = Thing(), Thing()
    gone = weakref.ref(dropped)
    fork.abandon_after_fork(kept)
    fork.abandon_after_fork(dropped)
    del dropped
    gc.collect()
    fork._abandon_all()
    assert (kept.abandoned, gone()) == (1, None)


@pytest.mark.parametrize("status", [0, 7])
def test_a_child_that_inherited_onnxruntime_ends_with_its_status_and_its_words(status: int) -> None:
    script = f"""
import ctypes, os, sys, onnxruntime
from engineworks.runtime import fork
class Thing:
    def abandon(self): pass
thing = Thing()
fork.abandon_after_fork(thing)
child = os.fork()
if not child:
    ctypes.CDLL(None).printf(b"native words ")
    print("words", end="")
    sys.exit({status})
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert sorted(done.stdout.strip().split()) == sorted(f"native words words{status}".split()) or (
        done.stdout.endswith(f"{status}\n") and "native words" in done.stdout and done.stdout.count("words") == 2
    )
