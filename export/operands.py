"""What the rules of all operator families read their arguments with, and the checks that keep the batch open."""

from collections.abc import Callable, Sequence
from typing import Any

from engineworks.export.emitter import CannotTranslate, Emitter

Rule = Callable[..., Any]


class BatchSize:
    """Stands for ``x.shape[0]`` in what the traced module computes."""


BATCH = BatchSize()


def spread(value: Any, dims: int = 2) -> list[int]:
    """Spell a size out for each spatial axis; PyTorch takes one number, bare or in a list, for all of them."""
    sizes = [value] if isinstance(value, int) else list(value)
    sizes = sizes * dims if len(sizes) == 1 else sizes
    if len(sizes) != dims or not all(isinstance(size, int) for size in sizes):
        raise CannotTranslate(f"the size {value} for {dims} axes")
    return sizes


def numbers(values: Sequence[Any]) -> list[Any]:
    """Return what was given one by one or in one list, as ``x.view(2, 3)`` and ``x.view((2, 3))`` are."""
    return list(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple)) else list(values)


def tensor(e: Emitter, value: Any, suffix: str) -> str:
    """Return the ONNX name of a value: of the graph, of a stored constant, or of a number stored here."""
    import torch

    if isinstance(value, str):
        return value
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return e.weight(f"{e.current}/{suffix}", value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return e.scalar(suffix, float(value))
    kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
    raise CannotTranslate("the batch size as a number" if value is BATCH else f"an operand of type {kind}")


def constants(e: Emitter, **values: Any) -> list[str]:
    """Store constant tensors, each a number for a channel and never for a row."""
    import torch

    for name, value in values.items():
        if not isinstance(value, torch.Tensor) or value.dim() != 1:
            raise CannotTranslate(f"a {name} that is computed from the input, or no vector")
    return [tensor(e, value, name) for name, value in values.items()]


def axis_of(e: Emitter, name: str, dim: Any) -> int:
    """Return an axis counted from the front.

    Raises:
        CannotTranslate: it is the batch axis.
    """
    if not isinstance(dim, int):
        raise CannotTranslate(f"the axis {dim}")
    axis = dim % len(e.shape(name))
    if axis == 0:
        raise CannotTranslate("an operation along the batch axis")
    return axis


def axes_of(e: Emitter, name: str, dim: Any, what: str) -> list[int]:
    """Return one axis or several, counted from the front; none means all, the batch among them, and is refused."""
    axes = [axis_of(e, name, axis) for axis in ([dim] if isinstance(dim, int) else dim or [])]
    if not axes:
        raise CannotTranslate(f"{what} over everything")
    return axes


def check_rank(e: Emitter, name: str, rank: int) -> None:
    """Refuse pictures without a batch: PyTorch takes them, and their first axis for the channels."""
    if len(e.shape(name)) != rank:
        raise CannotTranslate(f"a convolution, pooling or norm of {len(e.shape(name))} axes where {rank} hold a batch")


def check_broadcast(e: Emitter, *operands: Any) -> None:
    """Refuse operands whose axes, lined up from the last, put something else than a one beside the batch."""
    import torch

    rank = len(e.result)
    for operand in operands:
        if isinstance(operand, str) and len(e.shape(operand)) != rank:
            raise CannotTranslate("two values of different rank, where the batch of one meets another axis")
        if isinstance(operand, torch.Tensor) and operand.dim() == rank and operand.shape[0] != 1:
            raise CannotTranslate("a constant with an axis of its own along the batch")


def reshaped(e: Emitter, input: str) -> str:
    """Reshape to the size that PyTorch found, [0, …]: TensorRT makes ten layers of Flatten."""
    if e.result[0] != e.rows:
        raise CannotTranslate("a view that moves the batch to another axis")
    if e.result == e.shape(input):
        return input
    return e.emit("Reshape", [input, e.integers("shape", [0, *e.result[1:]])])
