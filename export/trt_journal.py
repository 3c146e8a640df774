"""What the compiler reports while it works, and the way to stop it.

The monitor made here is called from C++, which swallows Python exceptions: so nothing may leave it, and whatever goes
wrong inside is kept for the caller. The log is ``engineworks.runtime.trt_journal``, one for builds and runtimes.
"""

from collections.abc import Callable
from typing import Any

from engineworks.runtime.trt_journal import Journal, listening, shared_logger

__all__ = ["Cancelled", "Journal", "OnProgress", "Progress", "listening", "make_monitor", "shared_logger"]

OnProgress = Callable[[str, float | None], None]
Cancelled = Callable[[], bool]


class Progress:
    """Passes the compiler's steps to the caller, and the caller's wish to stop to the compiler."""

    def __init__(self, on_progress: OnProgress | None, cancelled: Cancelled | None) -> None:
        self.failure: BaseException | None = None
        self.stopped = False
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._steps: dict[str, int] = {}

    def start(self, phase: str, steps: int) -> None:
        """Begin a phase of so many steps; phases nest."""
        self._steps[phase] = steps
        self._guarded(phase, 0.0 if steps else None)

    def step(self, phase: str, index: int) -> bool:
        """Tell that a step is done; False asks the compiler to stop."""
        steps = self._steps.get(phase, 0)
        self._guarded(phase, (index + 1) / steps if steps else None)
        return not self.stopped

    def finish(self, phase: str) -> None:
        """End a phase: the compiler may do so before its last step."""
        self._guarded(phase, 1.0)

    def check(self) -> bool:
        """Ask whether to stop, outside of any phase."""
        self._guarded(None, None)
        return self.stopped

    def _guarded(self, phase: str | None, done: float | None) -> None:
        if self.stopped:
            return
        try:
            self.stopped = self._cancelled is not None and self._cancelled()
            if phase is not None and self._on_progress is not None and not self.stopped:
                self._on_progress(phase, done)
        except BaseException as error:  # kept for the caller: C++ would swallow it
            self.failure, self.stopped = error, True


def make_monitor(trt: Any, progress: Progress) -> Any:
    """Make an ``IProgressMonitor`` that reports to ``progress``; its ``step_complete`` must answer True to go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above
        """Forwards; nothing here can raise."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Begin a phase."""
            progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Report a step; False cancels the build."""
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            """End a phase."""
            progress.finish(phase_name)

    return Monitor()
