"""A file of a bundle, opened and digested in a thread while something else is done; nobody reads it before that."""

import threading
from types import TracebackType

from engineworks.runtime.bundle import Bundle


class Ahead:
    """One file on its way; leave the ``with`` block when native code has opened it.

    Args of the constructor:
        bundle: where it belongs.
        name: the file's.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self._file = bundle.checked(name)
        self._path = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._open, name="engineworks-digest")
        self._started = False

    def __enter__(self) -> "Ahead":
        try:
            self._thread.start()
            self._started = True
        except RuntimeError:  # no thread is to be had: then here
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        if self._error is None:
            self._file.__exit__(kind, error, trace)

    def path(self) -> str:
        """Wait for the digest; return a path to the open file, see ``Bundle.checked``.

        Raises:
            BundleError: as ``Bundle.checked``.
        """
        self._wait()
        if self._error is not None:
            raise self._error
        return self._path

    def _wait(self) -> None:
        if self._started:
            self._thread.join()

    def _open(self) -> None:
        try:
            self._path = self._file.__enter__()
        except BaseException as error:
            self._error = error
