"""Closing waits for what is under way and for nothing else; whatever ends a run, no mark of it stays."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.runtime import Backend, BackendError, InputError
from engineworks.runtime.inflight import InFlight
from engineworks.runtime.stats import Tally

Array = npt.NDArray[Any]
PATIENCE = 30  # seconds; only a hang reaches it
X = {"x": np.zeros((2, 1))}


class Runner:
    """A backend that does what it is told when it is run, and remembers whether it was freed."""

    backend = Backend("fake", "a test")
    device = "cuda:1"

    def __init__(self, run: Callable[[], Any] = lambda: None) -> None:
        self.does, self.freed = run, 0

    def run(self, inputs: dict[str, Any], outputs: list[str]) -> list[Any]:
        self.does()
        assert not self.freed
        return [inputs["x"]]

    def run_on_device(self, inputs: dict[str, Any], outputs: list[str]) -> list[Any]:
        self.does()
        return ["there"]

    def close(self) -> None:
        self.freed += 1


def opened(run: Callable[[], Any] = lambda: None) -> tuple[Runner, InFlight]:
    runner = Runner(run)
    return runner, InFlight(runner, ["y"], "four", Tally())


def test_outputs_stay_on_the_device_where_that_is_asked_for_and_count_the_same() -> None:
    _, inflight = opened()
    assert inflight.device == "cuda:1"
    assert inflight.run(X, 2, stay=True) == ["there"]
    assert inflight.tally.counts["rows"] == 2


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


def test_a_run_is_counted_while_it_lasts_and_tallied_after() -> None:
    _, inflight = opened(lambda: seen.append(len(inflight)))
    seen: list[int] = []
    inflight.run(X, 2)
    inflight.run(X, 2, count=False)
    assert (seen, len(inflight)) == ([1, 1], 0)
    assert (inflight.tally.counts["calls"], inflight.tally.counts["rows"]) == (1, 2)


def test_closing_waits_for_a_run_in_another_thread() -> None:
    inside, go = threading.Event(), threading.Event()

    def run() -> None:
        inside.set()
        assert go.wait(PATIENCE)

    runner, inflight = opened(run)
    answers: list[Any] = []
    worker = threading.Thread(target=lambda: answers.append(inflight.run(X, 2)))
    worker.start()
    assert inside.wait(PATIENCE)
    closers = [threading.Thread(target=inflight.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    while not inflight._gone:
        closers[0].join(0.001)
    with pytest.raises(BackendError, match="is closed"):
        inflight.check()
    assert runner.freed == 0
    go.set()
    for thread in (worker, *closers):
        thread.join(PATIENCE)
    assert (len(answers), runner.freed) == (1, 1)


def test_a_closed_backend_refuses_and_is_freed_once() -> None:
    runner, inflight = opened()
    inflight.close()
    inflight.close()
    with pytest.raises(BackendError) as caught:
        inflight.run(X, 2)
    assert str(caught.value) == "bundle four: this session is closed. Load the bundle again."
    assert runner.freed == 1


def test_a_signal_handler_that_closes_in_the_middle_of_a_run_does_not_wait_for_itself() -> None:
    runner, inflight = opened()
    runner.does = inflight.close
    with pytest.raises(BackendError, match="is closed"):
        inflight.run(X, 2)
    assert runner.freed == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_an_interrupted_run_leaves_no_mark_and_passes_the_interrupt_on(error: BaseException) -> None:
    runner, inflight = opened(raising(error))
    with pytest.raises(type(error)):
        inflight.run(X, 2)
    assert len(inflight) == 0
    inflight.close()
    assert runner.freed == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "the backend failed (out of memory). Pass a smaller batch, or reload it."),
        (RuntimeError("lost"), "the backend failed (RuntimeError: lost). Pass a smaller batch, or reload it."),
    ],
)
def test_what_a_backend_raises_becomes_our_own_error_and_is_counted(error: Exception, told: str) -> None:
    _, inflight = opened(raising(error))
    with pytest.raises(BackendError) as caught:
        inflight.run(X, 2)
    assert str(caught.value) == f"bundle four: {told}"
    assert caught.value.__cause__ is error
    assert (inflight.tally.counts["failed"], inflight.tally.counts["calls"]) == (1, 0)


def test_our_own_error_passes_as_it_is() -> None:
    error = InputError("ours")
    _, inflight = opened(raising(error))
    with pytest.raises(InputError) as caught:
        inflight.run(X, 2)
    assert caught.value is error


def test_an_interrupted_closing_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, inflight = opened()
    inflight._marks[object()] = -1  # a run of a thread that does not end
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: raising(KeyboardInterrupt())())
        with pytest.raises(KeyboardInterrupt):
            inflight.close()
    assert runner.freed == 0
    inflight._marks.clear()
    inflight.close()
    assert runner.freed == 1


def test_a_forked_child_keeps_the_native_session_and_frees_nothing() -> None:
    runner, inflight = opened()
    before = sys.getrefcount(runner)
    inflight.abandon()
    gc.collect()
    assert sys.getrefcount(runner) == before  # one reference gone with the attribute, one kept for ever
    inflight.close()
    assert runner.freed == 0
    with pytest.raises(BackendError, match="was loaded before this process was forked"):
        inflight.run(X, 2)


# --- as processes

FORK = """
import os, sys, threading, numpy as np
from engineworks import runtime
x = np.zeros((1, 3, 8, 8), np.float32)
{before}
child = os.fork()
if not child:
    {child}
    sys.stdout.flush()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
{after}
"""


def forked(bundle: Path, before: str, child: str, after: str = "") -> list[str]:
    """What the two processes print; the child ends through sys.exit, so that everything is freed there."""
    code = FORK.format(before=before, child=child, after=after)
    command = [sys.executable, "-c", code, str(bundle)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment)
    return done.stdout.splitlines()


def test_a_service_may_import_fork_and_load_in_both_processes(bundle: Path) -> None:
    use = "model = runtime.load(sys.argv[1], device='cpu', threads=2); print(model.submit(x).result(60).shape)"
    assert forked(bundle, "runtime.load, runtime.Session", use, use) == ["(1, 4)", "7", "(1, 4)"]


def test_a_session_loaded_before_a_fork_says_so_in_the_child_and_works_on_in_the_parent(bundle: Path) -> None:
    before = "model = runtime.load(sys.argv[1], device='cpu', threads=2); model.submit(x).result(60)"
    child = (
        "for use in (model.infer, model.submit, lambda x: list(model.infer_batch(x))):\n"
        "        try: use(x)\n"
        "        except runtime.BackendError as error: print(error)\n"
        "    model.stats(); model.close()\n"
        "    print(runtime.load(sys.argv[1], device='cpu').infer(x).shape)"
    )
    told = "bundle four-fp16: this session was loaded before this process was forked. Load the bundle again."
    after = "print(model.submit(x).result(60).shape); model.close()"
    assert forked(bundle, before, child, after) == [told, told, told, "(1, 4)", "7", "(1, 4)"]
