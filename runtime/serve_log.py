"""The access log: one JSON object a line, written by a thread of its own, so that no disk or terminal delays a request.

Where lines come faster than they can be written, or the disk is full, lines are dropped and counted; serving goes on.
"""

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Literal, TextIO

import click

Which = Literal["all", "errors", "off"]
_MOST = 10_000


def say(line: str) -> None:
    """Tell the operator something on stderr."""
    with suppress(OSError):  # a full disk or a closed pipe is no reason not to serve
        click.echo(line, err=True)


class AccessLog:
    """Lines on their way to a stream. ``dropped`` counts those that did not get there."""

    def __init__(self, which: Which, stream: TextIO | None = None) -> None:
        self.which = which
        self.dropped = 0
        self._stream = stream or sys.stderr
        self._lines: deque[dict[str, Any]] = deque()
        self._change = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engineworks-access-log", daemon=True)
        if which != "off":
            self._thread.start()

    def wants(self, status: int) -> bool:
        """Tell whether a request with this status is logged."""
        return self.which == "all" or (self.which == "errors" and status >= 400)

    def write(self, line: dict[str, Any]) -> None:
        """Log one request; the time is added."""
        if len(self._lines) >= _MOST:
            self.dropped += 1
            return
        self._lines.append({"time": round(time.time(), 6), **line})
        self._change.set()

    def close(self) -> None:
        """Write what is there, within two seconds."""
        self._closed = True
        self._change.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _work(self) -> None:
        import orjson

        while not self._closed or self._lines:
            self._change.wait()
            self._change.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            try:
                self._stream.write("".join(orjson.dumps(line).decode() + "\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe
                self.dropped += len(lines)
