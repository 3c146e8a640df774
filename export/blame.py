"""Which line of the user's own code is to blame for a refusal.

A line is given as ``mynet.py:17, in forward: if x.shape[0] > 4:``; folders of the machine never reach a message. Where
nothing is found, there is None: a refusal stands without a line too.
"""

import contextlib
import functools
import linecache
import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from torch.fx import Node

_LONGEST = 80  # characters of a source line
_IN_A_TRACE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_GUARDS = "torch.fx.experimental.symbolic_shapes"  # where torch logs each guard, while the line that causes it runs


def user_line(error: BaseException) -> str | None:
    """Return the line of the user's code from which an error came: the innermost of its traceback, or of its causes'.

    Args:
        error: caught where only frames below the catcher's are in its traceback.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        frames = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in _walk(following)]
        if line := _innermost(frames):
            return line
        following = following.__cause__ or following.__context__
    return None


def node_line(node: "Node") -> str | None:
    """Return the line of the user's ``forward`` that made a node of a program; torch keeps no frames below it."""
    found = _IN_A_TRACE.findall(node.meta.get("stack_trace") or "")
    return _innermost([(file, int(number), function) for file, number, function in found])


def running_line(frame: FrameType | None = None) -> str | None:
    """Return the user's line that is running now: the innermost that ``frame``, or the caller, was called from."""
    found = frame or sys._getframe(1)
    while found and _is_ours(found.f_code.co_filename):
        found = found.f_back  # type: ignore[assignment]
    while found and not _is_ours(found.f_code.co_filename):  # what called us is not the model
        if is_users(found.f_code.co_filename):
            return line_at(found.f_code.co_filename, found.f_lineno, found.f_code.co_name)
        found = found.f_back  # type: ignore[assignment]
    return None


def raised(error: Exception, rows: int) -> ExportError:
    """Return what the user's forward raised as an error of ours, with its line."""
    words = (str(error).strip() or "no words").splitlines()[0].rstrip(".")
    return ExportError(f"forward raises {type(error).__name__} at a batch of {rows}: {words}.{at(user_line(error))}")


def at(line: str | None) -> str:
    """Return a line as the end of a message, or nothing where there is none."""
    return f" At {line}" if line else ""


def line_at(file: str, number: int, function: str) -> str:
    """Return a line in words."""
    text = linecache.getline(file, number).strip()
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return f"{Path(file).name}:{number}, in {function}" + (f": {text}" if text else "")


@functools.cache
def is_users(file: str) -> bool:
    """Tell whether a file is the user's: no part of Python, of an installed package, or of engineworks."""
    if file.startswith("<") or {"site-packages", "dist-packages"} & set(Path(file).parts) or _is_ours(file):
        return False
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return not any(Path(file).is_relative_to(folder) for folder in python)


@functools.cache
def _is_ours(file: str) -> bool:
    packages = ("export", "calibration", "models", "runtime")
    modules = [sys.modules.get(f"engineworks.{name}") for name in packages]
    folders = {Path(module.__file__).parent for module in modules if module and module.__file__}
    return Path(file).parent in folders


def _walk(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _innermost(frames: list[tuple[str, int, str]]) -> str | None:
    return next((line_at(*frame) for frame in reversed(frames) if is_users(frame[0])), None)


@dataclass
class Guards:
    """The lines at which torch narrowed a free size, in order: those that fixed it, and those that bounded it."""

    fixed: list[str] = field(default_factory=list)
    bounded: list[str] = field(default_factory=list)

    @property
    def line(self) -> str | None:
        """The first line that fixed a size, else the last that bounded one."""
        return next(iter(self.fixed), None) or next(reversed(self.bounded), None)


@contextlib.contextmanager
def guards() -> Iterator[Guards]:
    """While active, note which lines of the user's make torch.export narrow a free size.

    An error about a violated constraint comes when the capture is over and has lost its cause; the log line of each
    guard is written while the cause is on the stack.
    """
    found = Guards()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "[guard added]" in record.msg and (line := running_line()):
                fixes = str(record.args[1]).startswith("Eq(") if isinstance(record.args, tuple) else False
                (found.fixed if fixes else found.bounded).append(line)

    logger, listener = logging.getLogger(_GUARDS), Listener(logging.INFO)
    before = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [listener], False
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        level, logger.propagate, logger.handlers = before
        logger.setLevel(level)
