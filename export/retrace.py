"""Two runs of the same forward, line by line: where they first part.

For refusals alone: the user's own lines are run under ``sys.settrace``, and what they make is kept and compared. That
finds the line at which random numbers, the time, or the rows beside a row come into an answer, whatever brought them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.export.blame import at, is_users, line_at
from engineworks.runtime.compare import sqnr

Array = npt.NDArray[Any]
Run = Callable[..., Any]
_SAME_DB = 90.0  # as in reference: above what other sums in float32 cost, below what another row brings in
_MOST = 4096  # elements of a tensor that are kept of each line
_ROWS = 8
ROWS_DIFFER = "the original's answer to a row depends on its whole batch. Fix the batch: --batch N."


@dataclass(frozen=True)
class Step:
    """One event of a run: before a line, or at a return; ``kept`` is what the frame's tensors hold by then."""

    frame: int
    place: tuple[str, int, str]
    returns: bool
    kept: Mapping[str, Array]


def why_rows_differ(run: Run, inputs: Mapping[str, Array]) -> str | None:
    """Say why the original's answer to a row is not always the same, and at which of the user's lines that begins.

    Args:
        run: the original.
        inputs: a few rows, all different.

    Returns:
        The reason with the line; None where no line of the user's shows a difference.
    """
    few = {name: array[:_ROWS] for name, array in inputs.items()}
    line, found = _parting(_follow(run, few, None), _follow(run, few, None), exact=True)
    if found:
        return (
            "forward answers the same input otherwise from call to call: random numbers, the time, a count, or memory "
            f"as it comes.{at(line)}"
        )
    for row in range(min(3, len(next(iter(few.values()))))):
        alone = _follow(run, {name: array[row : row + 1] for name, array in few.items()}, 0)
        among = _follow(run, {name: np.roll(array, -1 - row, axis=0) for name, array in few.items()}, -1)
        line, found = _parting(alone, among, exact=False)
        if found:
            return f"{ROWS_DIFFER}{at(line)}"
    return None


def other_way(run: Run, capture: Run, inputs: Mapping[str, Array]) -> str | None:
    """Return the user's line after which a capture runs other lines than an ordinary call."""
    import torch

    def places(call: Run) -> list[Step]:
        steps = list[Step]()
        numbers: dict[FrameType, int] = {}

        def each(frame: FrameType, event: str, result: Any) -> None:
            place = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
            steps.append(Step(numbers.setdefault(frame, len(numbers)), place, event == "return", {}))

        _traced(call, inputs, each)
        return steps

    with torch.inference_mode():  # as the original is run
        called = places(run)
    return _parting(called, places(capture), exact=True)[0]


def first_change(run: Run, inputs: Mapping[str, Array], look: Callable[[], Any]) -> str | None:
    """Return the user's line after which ``look`` first gives something else than at the start."""
    import torch

    before = look()
    found: list[tuple[str, int, str]] = []
    last: list[tuple[str, int, str]] = []

    def each(frame: FrameType, event: str, result: Any) -> None:
        if not found and last and look() != before:
            found.append(last[-1])
        last[:] = [(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]

    with torch.inference_mode():
        _traced(run, inputs, each)
    if not found and last and look() != before:
        found += last
    return line_at(*found[0]) if found else None


def last_return(run: Run, inputs: Mapping[str, Array]) -> str | None:
    """Return the user's line at which the run ends."""
    import torch

    last: list[tuple[str, int, str]] = []

    def each(frame: FrameType, event: str, result: Any) -> None:
        last[:] = [(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]

    with torch.inference_mode():
        _traced(run, inputs, each)
    return line_at(*last[0]) if last else None


def _follow(run: Run, inputs: Mapping[str, Array], row: int | None) -> list[Step]:
    """Run once and keep every step; of tensors with a batch axis the one row, or all of them."""
    import torch
    from torch.utils._pytree import tree_leaves

    count, steps, numbers = len(next(iter(inputs.values()))), list[Step](), dict[FrameType, int]()

    def kept(value: Any) -> Array | None:
        if not isinstance(value, torch.Tensor) or value.is_sparse:
            return None
        tensor = value.detach()
        tensor = tensor[row] if row is not None and tensor.dim() and tensor.shape[0] == count else tensor
        return np.array(tensor.reshape(-1)[:_MOST].resolve_conj().cpu().numpy())

    def each(frame: FrameType, event: str, result: Any) -> None:
        named = frame.f_locals if event == "line" else {str(i): leaf for i, leaf in enumerate(tree_leaves(result))}
        arrays = {name: array for name, value in [*named.items()] if (array := kept(value)) is not None}
        place = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        steps.append(Step(numbers.setdefault(frame, len(numbers)), place, event == "return", arrays))

    with torch.inference_mode():
        _traced(run, inputs, each)
    return steps


def _traced(run: Run, inputs: Mapping[str, Array], each: Callable[[FrameType, str, Any], None]) -> None:
    """Run once; ``each`` is called before every line of the user's, and at every return. Errors end the run quietly."""
    import torch

    def local(frame: FrameType, event: str, result: Any) -> Any:
        if event in {"line", "return"}:
            sys.settrace(None)
            try:
                each(frame, event, result)
            finally:
                sys.settrace(enter)
        return local

    def enter(frame: FrameType, event: str, result: Any) -> Any:
        return local if is_users(frame.f_code.co_filename) else None

    given, before = [torch.tensor(array) for array in inputs.values()], sys.gettrace()
    sys.settrace(enter)
    try:
        run(*given)
    except Exception:  # the user's own: what was seen until then is what there is
        return
    finally:
        sys.settrace(before)


def _parting(first: Sequence[Step], second: Sequence[Step], *, exact: bool) -> tuple[str | None, bool]:
    """Return the line at which two runs first part, and whether they do; the callers' own frames are left out."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one.place != other.place:  # another way was taken, by the line before
            return _before(first, index), True
        for name in one.kept.keys() & other.kept.keys():
            if not _same(one.kept[name], other.kept[name], exact=exact):
                return line_at(*one.place) if one.returns else _before(first, index), True
    return None, len(first) != len(second)


def _same(one: Array, other: Array, *, exact: bool) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"):
        return True
    return not exact and one.dtype.kind == "f" and sqnr(one, other) > _SAME_DB


def _before(steps: Sequence[Step], index: int) -> str | None:
    """Name the line that ran before a step, in the same frame; for a frame's first, the one that called it."""
    frame = steps[index].frame
    earlier = [step for step in steps[:index] if step.frame == frame] or [*steps[:index]]
    return line_at(*earlier[-1].place) if earlier else None
