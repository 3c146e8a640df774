"""A run that notes what a forward takes out of its tensors: values, and the batch size as a word or a key.

An exporter sees tensors. What a forward reads out of one into Python (a branch, an index, a number) is fixed in the
graph, or the branch is lost that another value would have taken; a forward that catches errors hides it altogether.
"""

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import numpy.typing as npt

from engineworks.export.blame import at, is_users, raised, running_line

Array = npt.NDArray[Any]
Run = Callable[..., Any]
_READS = {
    "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__", "item", "tolist",
    "numpy", "data_ptr", "equal", "allclose", "is_nonzero",
}  # fmt: skip


def watched(run: Run, inputs: Mapping[str, Array], reads: list[str], *, free: bool = True) -> Any:
    """Run with tensors that note who reads their values, as do all that are made of them; else without.

    Args:
        run: the original.
        inputs: arrays; all of one number of rows.
        reads: is filled with what was read, and the line that did, in words.
        free: whether the batch size is, so that it must not be made a word or a key.

    Returns:
        What the original returns; None where it raises after a read.

    Raises:
        ExportError: the forward raises.
    """
    import torch

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.__name__ in _READS and (line := _reader()):
                reads.append(f"values of the data into Python; what follows from them would be fixed in a graph.{line}")
            result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
            if free and func in sized:
                return _marked(result, Rows(count))
            return result

    class Rows(int):
        def __hash__(self) -> int:
            note()
            return hash(int(self))

        def __str__(self) -> str:
            note()
            return str(int(self))

        def __format__(self, how: str) -> str:
            note()
            return format(int(self), how)

    count = len(next(iter(inputs.values())))
    sized = (torch.Tensor.size, torch.Tensor.shape.__get__)  # type: ignore[attr-defined]

    def note() -> None:
        if line := _reader(users=True):
            reads.append(f"the batch size as a word or a key; what follows from it would be fixed in a graph.{line}")

    try:
        return run(*(torch.tensor(array).as_subclass(Watched) for array in inputs.values()))
    except Exception:  # the user's own, or of something that does not take a subclass: asked again without
        if reads:
            return None
    try:
        return run(*(torch.tensor(array) for array in inputs.values()))
    except Exception as error:
        raise raised(error, len(next(iter(inputs.values())))) from error


def _marked(size: Any, rows: int) -> Any:
    """Return a size whose first number, where it is the batch's, is ``rows``, which tells when it is a word or a key.

    A branch on that number is seen by both exporters; of its name or its hash they are told nothing.
    """
    import torch

    if isinstance(size, torch.Size):
        return torch.Size([rows, *size[1:]]) if size and size[0] == rows else size
    return rows if size == rows else size


def _reader(*, users: bool = False) -> str | None:
    """Return who reads a value just now, as the end of a message; None where torch does, or a library that may."""
    frame: FrameType | None = sys._getframe(2 + users)
    if users and not (frame and is_users(frame.f_code.co_filename)):
        return None
    while frame and frame.f_code.co_filename.endswith(("torch/_tensor.py", "torch/overrides.py")):
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "") if frame else ""
    return None if name == "torch" or name.startswith("torch.") else at(running_line(frame)) or " In a library."
