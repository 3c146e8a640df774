"""Which TensorRT compilers this host has, and which of them to use.

Two packages have one API: ``tensorrt`` compiles for the GPU it runs on and needs one; ``tensorrt_rtx`` compiles ahead
of time on any CPU, for RTX GPUs only. Nothing of TensorRT is touched before the driver has answered: without one, some
of its objects crash the process instead of failing.
"""

from dataclasses import dataclass
from typing import Any, Literal

from engineworks.runtime.cuda import Gpu, probe_gpu
from engineworks.runtime.errors import BackendError, EngineError
from engineworks.runtime.trt_runtime import Flavour, load_module

__all__ = [
    "Asked",
    "Choice",
    "Compiler",
    "Flavour",
    "Gpu",
    "choose_compiler",
    "examine",
    "installed_compilers",
    "load_compiler",
    "probe_gpu",
]

Asked = Literal["auto", "tensorrt", "rtx", "none"]


@dataclass(frozen=True)
class Compiler:
    """One of the two compilers; ``problem`` is None where it can compile here, else the reason with its mend."""

    flavour: Flavour
    version: str | None
    problem: str | None


@dataclass(frozen=True)
class Choice:
    """The compiler to use, or None for no engine, and a sentence for each one that was passed over."""

    flavour: Flavour | None
    passed_over: tuple[str, ...] = ()


def load_compiler(flavour: Flavour) -> Any:
    """Import the compiler's Python module.

    Raises:
        EngineError: it is not installed (with the pip line), or does not import (with its own reason).
    """
    try:
        return load_module(flavour)
    except BackendError as error:
        raise EngineError(str(error)) from error


def examine(flavour: Flavour) -> Compiler:
    """Import one compiler and see whether it can compile on this host; problems are recorded, not raised."""
    version, problems = None, []
    try:
        version = str(load_compiler(flavour).__version__)
    except EngineError as error:
        problems.append(str(error))
    if flavour == "tensorrt" and probe_gpu().target is None:
        problems.append(f"tensorrt compiles only where a GPU is: {probe_gpu().problem}")
    return Compiler(flavour, version, "; ".join(problems) or None)


def installed_compilers() -> tuple[Compiler, ...]:
    """Examine both compilers, in the order in which ``auto`` prefers them."""
    return examine("tensorrt"), examine("rtx")


def choose_compiler(asked: Asked, *, targets: tuple[str, ...] = ()) -> Choice:
    """Choose the compiler for ``--engine``; the choice says why others were passed over.

    Args:
        asked: ``auto`` takes ``tensorrt`` where there is a GPU for it, else ``rtx``, else none.
        targets: those asked for by the user, such as ``("sm86",)``; ``tensorrt`` serves this host's GPU alone, so
            ``auto`` passes it over for any others.

    Raises:
        EngineError: ``tensorrt`` or ``rtx`` was asked for by name and cannot compile here.
    """
    if asked == "none":
        return Choice(None, ("no engine was asked for",))
    if asked != "auto":
        compiler = examine(asked)
        if compiler.problem:
            raise EngineError(compiler.problem)
        return Choice(compiler.flavour)
    passed_over: list[str] = []
    for compiler in installed_compilers():
        problem = compiler.problem or _wrong_targets(compiler.flavour, targets)
        if not problem:
            return Choice(compiler.flavour, tuple(passed_over))
        passed_over.append(problem)
    return Choice(None, tuple(passed_over))


def _wrong_targets(flavour: Flavour, targets: tuple[str, ...]) -> str:
    if flavour == "rtx" or not targets:
        return ""
    here = probe_gpu().target
    return "" if targets == (here,) else f"tensorrt compiles for this host's GPU ({here}), not for {', '.join(targets)}"
