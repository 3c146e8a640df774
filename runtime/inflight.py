"""A backend that many threads use and one closes: every run is known while it lasts, and closing waits for it.

No lock is taken on the way of a run. It leaves a mark before it looks whether the backend is open, and takes it back
in one step that no interrupt can split; whoever closes shuts first and then looks for marks. So Ctrl-C in the middle
of a run never leaves a mark behind for which ``close`` would wait for ever.
"""

import ctypes
import threading
import time
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engineworks.runtime.backend import Backend
from engineworks.runtime.errors import BackendError, EngineworksError
from engineworks.runtime.fork import abandon_after_fork
from engineworks.runtime.stats import Tally

Array = npt.NDArray[Any]
_LOOK_AGAIN = 0.002  # seconds


class Runner(Protocol):
    """What ``open_session`` returns: it runs arrays that are already checked, in any thread."""

    @property
    def backend(self) -> Backend:
        """What it is, and why."""
        ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:N``."""
        ...

    def run(self, inputs: dict[str, Any], outputs: list[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph once."""

    def run_on_device(self, inputs: dict[str, Any], outputs: list[str]) -> list[Any]:
        """Run the graph once and leave the outputs on the device."""

    def close(self) -> None:
        """Free it; calling it again does nothing."""


class InFlight:
    """A backend in use, its marks and its tally."""

    def __init__(self, runner: Runner, outputs: list[str], bundle: str, tally: Tally) -> None:
        self.tally = tally
        self._runner: Runner | None = runner
        self.device = runner.device
        self._outputs = outputs
        self._bundle = bundle
        self._gone = ""
        self._marks: dict[object, int] = {}
        self._closing = threading.RLock()
        abandon_after_fork(self)

    def run(self, arrays: dict[str, Any], rows: int, *, count: bool = True, stay: bool = False) -> list[Any]:
        """Run checked arrays once.

        Args:
            arrays: by name, contiguous.
            rows: how many rows of them are real, for the tally.
            count: False keeps the run out of the tally.
            stay: leave the outputs on the device.

        Raises:
            BackendError: closed, inherited through a fork, out of memory, or the backend failed.
        """
        mark = object()
        try:
            self._marks[mark] = threading.get_ident()
            runner = self._runner
            if self._gone or runner is None:
                raise self.closed()
            began = time.perf_counter_ns()
            results: list[Any] = (runner.run_on_device if stay else runner.run)(arrays, self._outputs)
            spent = time.perf_counter_ns() - began
        except Exception as error:
            told = self._told(error)
            raise told from (None if told is error else error)
        finally:
            self._marks.pop(mark, None)
        if count:
            self.tally.ran(rows, spent)
        return results

    def bare(self, arrays: dict[str, Array]) -> list[Array]:
        """Run with no mark, no tally and no error of ours: only for measuring, and never while another closes."""
        if self._runner is None:
            raise self.closed()
        results: list[Array] = self._runner.run(arrays, self._outputs)
        return results

    def __len__(self) -> int:
        """Tell how many runs are under way."""
        return len(self._marks)

    def check(self) -> None:
        """Refuse early what ``run`` would refuse.

        Raises:
            BackendError: closed, or inherited through a fork.
        """
        if self._gone:
            raise self.closed()

    def closed(self) -> BackendError:
        """Say why nothing runs here any more."""
        return BackendError(f"bundle {self._bundle}: this session {self._gone}. Load the bundle again.")

    def shut(self) -> None:
        """Refuse new runs."""
        self._gone = self._gone or "is closed"

    def close(self) -> None:
        """Refuse new runs, wait for those under way in other threads, free the backend; again does nothing.

        An interrupt ends the waiting and nothing else; a second call goes on with it.
        """
        self.shut()
        with self._closing:
            while any(thread != threading.get_ident() for thread in list(self._marks.values())):
                time.sleep(_LOOK_AGAIN)  # an Event's lock, taken in Python, could stay taken after an interrupt
            if self._runner is not None:
                self._runner.close()
                self._runner = None

    def abandon(self) -> None:
        """In a forked child: keep the native session for ever, for freeing it would wait for threads not there."""
        if self._runner is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runner))
        self._gone, self._runner = "was loaded before this process was forked", None
        self._marks, self._closing = {}, threading.RLock()

    def _told(self, error: Exception) -> EngineworksError:
        """Make of whatever was raised an error of ours; it is one already where the backend keeps its contract."""
        if self._gone:
            return self.closed()
        self.tally.add("failed")
        if isinstance(error, EngineworksError):
            return error
        what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        return BackendError(f"bundle {self._bundle}: the backend failed ({what}). Pass a smaller batch, or reload it.")
