"""What every backend's session can do, and how a choice among backends is told.

A session takes arrays that are already checked against the manifest. Its arrays lie on the host (numpy) or on a GPU
(anything with ``__dlpack__`` or ``__cuda_array_interface__``: a torch, CuPy or JAX array).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import BackendError

Array = npt.NDArray[np.generic]
Device = str
"""``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
BackendName = Literal["auto", "onnxruntime", "tensorrt", "rtx"]
Specialisation = Literal["lazy", "eager", "none"]

_PLACE = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?")


@dataclass(frozen=True)
class Backend:
    """What runs the bundle: its name, why it was chosen, and what was passed over for which reason."""

    name: str
    why: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        passed = f"; passed over: {'; '.join(self.passed_over)}" if self.passed_over else ""
        return f"{self.name} ({self.why}{passed})"


@dataclass(frozen=True)
class Speed:
    """What a TensorRT session does for speed alone.

    ``cuda_graphs`` replays a context's work from a captured graph as long as the batch size stays the same; where the
    engine cannot be captured, that is noted and it runs as before. ``specialisation`` (TensorRT-RTX) says when kernels
    for a new batch size are compiled: ``eager`` at its first call, ``lazy`` beside the first calls, which then may
    differ from later ones in their last bits, ``none`` never.
    """

    cuda_graphs: bool = False
    specialisation: Specialisation = "eager"


NO_HURRY = Speed()


@dataclass(frozen=True)
class Tuning:
    """What a TensorRT session may take.

    ``contexts`` calls run at once for each optimization profile, each with buffers of its own; further callers wait.
    ``max_batch`` keeps the buffers as small as that; None sizes them for the engine's largest.
    """

    contexts: int = 2
    max_batch: int | None = None
    speed: Speed = NO_HURRY


class OnDevice(Protocol):
    """An array on a GPU: ``torch.from_dlpack`` and its like take it without a copy."""

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


class BackendSession(Protocol):
    """An opened graph or engine; calls may come from several threads."""

    @property
    def backend(self) -> Backend:
        """What this is, and why."""
        ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:N``: where outputs of ``run_on_device`` lie."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What turned out less than asked for, in words: a runtime cache not kept, a graph not captured."""
        ...

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Array]:
        """Run once and return each output on the host; the arrays are the caller's own."""
        ...

    def run_on_device(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[OnDevice]:
        """Run once and leave each output where it was computed; complete when this returns."""
        ...

    def close(self) -> None:
        """Wait for the calls in flight, then free everything; calling it again does nothing."""
        ...


@dataclass(frozen=True)
class Place:
    """A device that was asked for: ``kind`` is ``auto``, ``cpu`` or ``cuda``; ``index`` numbers the GPU."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.index else self.kind


def parse_device(device: Device) -> Place:
    """Read ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        BackendError: anything else.
    """
    found = _PLACE.fullmatch(device) if isinstance(device, str) else None
    if found is None:
        raise BackendError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}.")
    return Place(device.partition(":")[0], int(found[1] or 0))


def check_tuning(tuning: Tuning) -> Tuning:
    """Hold the numbers against what makes sense.

    Raises:
        BackendError: a number below 1, or a specialisation that there is not.
    """
    if tuning.contexts < 1:
        raise BackendError(f"contexts: expected 1 or more, got {tuning.contexts}.")
    if tuning.max_batch is not None and tuning.max_batch < 1:
        raise BackendError(f"max_batch: expected 1 or more, got {tuning.max_batch}.")
    if tuning.speed.specialisation not in get_args(Specialisation):
        raise BackendError(f"specialisation: expected lazy, eager or none, got {tuning.speed.specialisation!r}.")
    return tuning
