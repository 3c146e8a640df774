"""What the commands of the runtime share: how they end, and how they show progress."""

import io
import sys
import time
from collections.abc import Callable
from typing import TextIO

import click

from engineworks.runtime.errors import BackendError, EngineworksError

_REFRESH = 0.2  # seconds


class DeviceType(click.ParamType):  # type: ignore[type-arg, unused-ignore] # generic in later clicks alone
    """``--device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""

    name = "auto|cpu|cuda|cuda:N"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the device as it was given, once it is known to be one."""
        from engineworks.runtime.protocol import parse_device

        try:
            parse_device(value)
        except BackendError as error:
            self.fail(str(error), param, ctx)
        return value


def status_of(command: click.Command, name: str, argv: list[str] | None) -> int:
    """Run a click command; return its exit status: 0 done, 1 a known failure in one line, 2 wrong usage, 130 Ctrl-C."""
    try:
        status = command.main(args=argv, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return 2
    except EngineworksError as error:
        click.echo(f"{name}: {error}", err=True)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    return int(status or 0)


def leave(main: Callable[[], int]) -> None:
    """Run ``main`` as the process's command and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know × and …
    sys.exit(main())


class Progress:
    """A line on a terminal: how much is done, and how long the rest will take. Elsewhere it is silent."""

    def __init__(
        self, what: str, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._began = self._latest = clock()

    def at(self, done: int) -> None:
        """Show that so much is done, now and then."""
        now = self._clock()
        if not self._shown or now - self._latest < _REFRESH:
            return
        self._latest = now
        left = (now - self._began) * (self._total - done) / done if done else 0.0
        self._stream.write(f"\r\x1b[K{self._what}: {done:,} of {self._total:,}, {duration(left)} left")
        self._stream.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"
