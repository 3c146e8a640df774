"""What the command says while it works: one line a step on stderr, its clock on a terminal, a bar for downloads."""

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from engineworks.runtime.bundle import Bundle

_CLEAR = "\r\x1b[K"  # back to the line's start, and erase it (ECMA-48)


class Talk:
    """The steps of one export in words. With ``quiet``, only what a user must not miss."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._began = time.monotonic()
        self._bar: Any = None
        self._lock = threading.Lock()  # the compiler tells its progress from its own thread
        self._transient = False

    def __enter__(self) -> "Talk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def say(self, step: str, text: str, warning: bool = False) -> None:
        """Print a step and its outcome; a warning also where all else is to be quiet."""
        self._clear()
        if self._quiet and not warning:
            return
        clock = f"{time.monotonic() - self._began:5.1f} s" if sys.stderr.isatty() else ""
        line = f"{clock}  {step:<18} {text}".strip() if clock else f"{step:<18} {text}"
        click.secho(line, err=True, fg="yellow" if warning else None)

    def progress(self, phase: str, share: float | None) -> None:
        """Show what a long step is at, on a terminal, in a line that the next one replaces."""
        if self._quiet or not sys.stderr.isatty():
            return
        with self._lock:
            done = "" if share is None else f" {share:.0%}"
            click.echo(f"{_CLEAR}         {phase}{done}", err=True, nl=False)
            self._transient = True

    def download(self, done: int, total: int | None) -> None:
        """Move the download's bar, where stderr is a terminal."""
        if self._quiet or not total:
            return
        if self._bar is None:
            self._bar = click.progressbar(length=total, label="download", file=sys.stderr, show_eta=True)
            self._bar.__enter__()
        self._bar.update(done - self._bar.pos)
        if done >= total:
            self._end_bar()

    def done(self, bundle: "Bundle") -> None:
        """Say what was made and how long it took."""
        size = sum(record.bytes for record in bundle.manifest.files.values())
        self.say("bundle", f"{bundle.manifest.summary}: {size / 1e6:.1f} MB in {time.monotonic() - self._began:.1f} s")

    def _clear(self) -> None:
        self._end_bar()
        with self._lock:
            if self._transient:
                click.echo(_CLEAR, err=True, nl=False)
                self._transient = False

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
