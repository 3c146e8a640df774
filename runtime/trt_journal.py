"""What TensorRT says while it works: its log, kept for whoever made it work.

TensorRT fails by returning None or False; the cause stands in its log alone. The logger made here is called from C++,
which swallows Python exceptions: so nothing may leave it.

One logger serves every build and every runtime of the process. TensorRT registers the first logger it is given and,
when a builder comes with another, warns while it holds the lock that a builder's end needs too: if the garbage
collector or another thread drops a builder just then, the process hangs for ever (seen with TensorRT-RTX 1.7.1).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Lines that follow every error on a host without GPU, and the notice that another builder is alive in this process.
_NOISE = ("catchCudaError", "The logger passed into createInfer")


class Journal:
    """Errors and warnings of one build or one call, in the order in which they were logged."""

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
        return "; ".join(telling or distinct) or "no reason was logged"

    def notices(self) -> tuple[str, ...]:
        """The distinct warnings, without noise."""
        return tuple(message for message in dict.fromkeys(self.warnings) if not _is_noise(message))


def _is_noise(message: str) -> bool:
    return any(words in message for words in _NOISE)


_loggers: dict[Any, Any] = {}
_open_journals: dict[int, Journal] = {}
_lock = threading.Lock()


@contextmanager
def listening(journal: Journal) -> Iterator[None]:
    """Keep in the journal what is logged in this thread; of threads that nobody listens to, everybody hears."""
    thread = threading.get_ident()
    before = _open_journals.get(thread)
    _open_journals[thread] = journal
    try:
        yield
    finally:
        if before is None:
            del _open_journals[thread]
        else:
            _open_journals[thread] = before


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
