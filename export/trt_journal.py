"""What the compiler says while it works: its log, its progress, and the way to stop it.

TensorRT fails by returning None or False; the cause stands in its log alone. The objects made here are called from C++,
which swallows Python exceptions: so nothing may leave them, and whatever goes wrong inside is kept for the caller.

One logger serves every build of the process. TensorRT registers the first logger it is given and, when a builder comes
with another, warns while it holds the lock that a builder's end needs too: if the garbage collector or another thread
drops a builder just then, the process hangs for ever (seen with TensorRT-RTX 1.7.1).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OnProgress = Callable[[str, float | None], None]
Cancelled = Callable[[], bool]

# Lines that follow every error on a host without GPU, and the notice that another builder is alive in this process.
_NOISE = ("catchCudaError", "The logger passed into createInfer")


class Journal:
    """Errors and warnings of one build, in the order in which the compiler logged them."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def record(self, severity: str, message: str) -> None:
        """Keep a message if it is a warning or worse; ``severity`` is the name of an ``ILogger.Severity``."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(" ".join(message.split()))
        elif severity == "WARNING":
            self.warnings.append(" ".join(message.split()))

    def cause(self) -> str:
        """Say why the last step failed: the distinct errors, without the noise that follows them."""
        distinct = list(dict.fromkeys(self.errors))
        telling = [message for message in distinct if not _is_noise(message)]
        return "; ".join(telling or distinct) or "the compiler gave no reason"

    def notices(self) -> tuple[str, ...]:
        """The distinct warnings, without noise."""
        return tuple(message for message in dict.fromkeys(self.warnings) if not _is_noise(message))


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


def _is_noise(message: str) -> bool:
    return any(words in message for words in _NOISE)


_loggers: dict[Any, Any] = {}
_open_journals: dict[int, Journal] = {}
_lock = threading.Lock()


@contextmanager
def listening(journal: Journal) -> Iterator[None]:
    """Keep in the journal what the compiler logs in this thread; of threads that nobody listens to, everybody hears."""
    thread = threading.get_ident()
    _open_journals[thread] = journal
    try:
        yield
    finally:
        del _open_journals[thread]


def shared_logger(trt: Any) -> Any:
    """Give the process's one ``ILogger`` for this module; it writes into the journals that listen."""
    with _lock:
        if trt not in _loggers:
            _loggers[trt] = _make_logger(trt)
        return _loggers[trt]


def _make_logger(trt: Any) -> Any:

    class Logger(trt.ILogger):  # type: ignore[misc] # a class of a module that is chosen at run time
        """Forwards; nothing here can raise."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Hand the message to this thread's journal."""
            own = _open_journals.get(threading.get_ident())
            for journal in [own] if own is not None else list(_open_journals.values()):
                journal.record(severity.name, message)

    return Logger()


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
