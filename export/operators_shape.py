"""Rules of what moves numbers about and computes none: views, slices, joins, paddings, resizing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engineworks.export.emitter import CannotTranslate, Emitter
from engineworks.export.operands import BATCH, axes_of, axis_of, numbers, reshaped, tensor


def flatten(e: Emitter, input: str, start_dim: int = 0, end_dim: int = -1) -> str:
    """Reshape of axes behind the batch."""
    axis_of(e, input, start_dim)
    return reshaped(e, input)


def unflatten(e: Emitter, input: str, dim: int, sizes: Any) -> str:
    """Reshape of one axis behind the batch."""
    axis_of(e, input, dim)
    return reshaped(e, input)


def reshape(e: Emitter, input: str, *shape: Any) -> str:
    """Reshape whose first size is the batch's own, or left open and then equal to it."""
    sizes = numbers(shape)
    if sizes[0] is not BATCH and sizes[0] != -1:
        raise CannotTranslate("a view with a fixed batch size")
    if e.result[0] != e.rows or any(size is BATCH for size in sizes[1:]):
        raise CannotTranslate("a view that moves the batch to another axis")
    if sizes[0] == -1 and math.prod(e.result[1:]) != math.prod(e.shape(input)[1:]):
        raise CannotTranslate("a view that mixes rows")
    return reshaped(e, input)


def reshape_as(e: Emitter, input: str, other: str) -> str:
    """Reshape to the size of another value, which has the batch in front."""
    return reshape(e, input, (BATCH, *e.shape(other)[1:]))


def unsqueeze(e: Emitter, input: str, dim: int) -> str:
    """Unsqueeze behind the batch axis."""
    axis = dim if dim >= 0 else dim + len(e.shape(input)) + 1
    if axis < 1:
        raise CannotTranslate("an axis put before the batch")
    return e.emit("Unsqueeze", [input, e.integers("axes", [axis])])


def squeeze(e: Emitter, input: str, *dim: Any) -> str:
    """Squeeze of named axes; of all of them the batch would be one where it is 1."""
    axes = [axis for axis in axes_of(e, input, numbers(dim) if dim else None, "a squeeze") if e.shape(input)[axis] == 1]
    return e.emit("Squeeze", [input, e.integers("axes", axes)]) if axes else input


def permute(e: Emitter, input: str, *dims: Any) -> str:
    """Transpose that leaves the batch axis first."""
    order = [axis % len(e.shape(input)) for axis in numbers(dims)]
    if order[0] != 0:
        raise CannotTranslate("a permutation that moves the batch axis")
    return input if order == sorted(order) else e.emit("Transpose", [input], perm=order)


def transpose(e: Emitter, input: str, dim0: int, dim1: int) -> str:
    """Transpose of two axes, neither of them the batch."""
    order = [*range(len(e.shape(input)))]
    first, second = axis_of(e, input, dim0), axis_of(e, input, dim1)
    order[first], order[second] = second, first
    return permute(e, input, order)


def movedim(e: Emitter, input: str, source: Any, destination: Any) -> str:
    """Transpose that puts axes elsewhere, the batch staying first."""
    rank = len(e.shape(input))
    taken, put = ([axis % rank for axis in ([a] if isinstance(a, int) else a)] for a in (source, destination))
    rest = iter(axis for axis in range(rank) if axis not in taken)
    order = [taken[put.index(axis)] if axis in put else next(rest) for axis in range(rank)]
    return permute(e, input, order)


def expand(e: Emitter, input: Any, *sizes: Any) -> str:
    """Expand along axes that hold one number; a constant is given a row for each of the batch."""
    wanted = numbers(sizes)
    if len(wanted) != len(e.result):
        raise CannotTranslate("an expansion to an unknown size")
    if not isinstance(input, str):
        return _rows_of(e, input, wanted)
    if len(e.shape(input)) != len(wanted) or wanted[0] not in {BATCH, -1}:
        raise CannotTranslate("an expansion that moves the batch axis, or fixes it")
    return _expanded(e, input)


def expand_as(e: Emitter, input: Any, other: str) -> str:
    """Expand to the size of another value."""
    return expand(e, input, (BATCH, *e.shape(other)[1:]))


def _expanded(e: Emitter, input: str) -> str:
    if e.result == e.shape(input):
        return input
    return e.emit("Expand", [input, e.integers("shape", [1, *e.result[1:]])])


def _rows_of(e: Emitter, constant: Any, wanted: list[Any]) -> str:
    """Repeat a constant's one row as often as the batch says."""
    if wanted[0] is not BATCH or constant.dim() != len(wanted) or constant.shape[0] != 1:
        raise CannotTranslate("a constant with an axis of its own along the batch")
    if e.result[1:] != tuple(constant.shape[1:]):
        raise CannotTranslate("a constant expanded along other axes than the batch")
    batch = e.step("batch", "Shape", [next(iter(e.shapes))], (), start=0, end=1)
    shape = e.step("shape", "Concat", [batch, e.integers("row", list(e.result[1:]))], (), axis=0)
    return e.emit("Expand", [tensor(e, constant, "row_of_all"), shape])


def repeat(e: Emitter, input: str, *sizes: Any) -> str:
    """Tile along axes that are not the batch."""
    times = numbers(sizes)
    if len(times) != len(e.shape(input)) or times[0] != 1 or not all(isinstance(n, int) for n in times):
        raise CannotTranslate("repeating the batch, or with more axes")
    return e.emit("Tile", [input, e.integers("times", times)])


def cat(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> str:
    """Concat along an axis that is not the batch, of values that all have one."""
    if not all(isinstance(value, str) for value in tensors):
        raise CannotTranslate("a constant joined to a value, with a fixed batch")
    axis = axis_of(e, tensors[0], dim)
    return tensors[0] if len(tensors) == 1 else e.emit("Concat", list(tensors), axis=axis)


def stack(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> str:
    """Concat along a new axis behind the batch."""
    if not all(isinstance(value, str) for value in tensors):
        raise CannotTranslate("a constant joined to a value, with a fixed batch")
    axis = dim % len(e.result)
    if axis == 0:
        raise CannotTranslate("an operation along the batch axis")
    one = tuple(1 if index == axis else size for index, size in enumerate(e.result))
    layers = [e.step("layer", "Unsqueeze", [value, e.integers("axes", [axis])], one) for value in tensors]
    return e.emit("Concat", layers, axis=axis)


def split(e: Emitter, input: str, _sizes: Any, dim: int = 0) -> tuple[str, ...]:
    """Split into the parts that PyTorch found; ``chunk`` and ``split`` alike."""
    axis = axis_of(e, input, dim)
    if len(e.parts) == 1:
        return (input,)
    return e.emit_parts("Split", [input, e.integers("sizes", [shape[axis] for _, shape in e.parts])], axis=axis)


def item(e: Emitter, input: Any, index: Any) -> Any:
    """Take one size of a shape, one of several values, or a part of a tensor by numbers, slices, None and …"""
    if not isinstance(input, str):
        return input[index]
    places = list(index) if isinstance(index, tuple) else [index]
    shape = e.shape(input)
    if Ellipsis in [place for place in places if not hasattr(place, "shape")]:
        at = places.index(Ellipsis)
        missing = len(shape) - sum(place is not None for place in places) + 1
        places[at : at + 1] = [slice(None)] * missing
    if not places or places[0] != slice(None) or len([place for place in places if place is not None]) > len(shape):
        raise CannotTranslate("an index into the batch, or before it")
    cuts, picked, added = _places(places, shape)
    return _picked(e, input, cuts, picked, added)


def _places(
    places: list[Any], shape: tuple[int, ...]
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]], list[int]]:
    """Sort an index into cuts (axis, start, end, step), picks (axis, number), and new axes in the result."""
    cuts, picked, added, axis, out = [], [], [], 0, 0
    for place in places:
        if place is None:
            added.append(out)
        elif isinstance(place, slice):
            parts = (place.start, place.stop, place.step)
            if not all(part is None or isinstance(part, int) for part in parts):
                raise CannotTranslate("a slice by other than numbers")
            start, stop, step = place.indices(shape[axis])
            if (start, stop, step) != (0, shape[axis], 1):
                cuts.append((axis, start, stop, step))
        elif isinstance(place, int) and not isinstance(place, bool):
            picked.append((axis, place % shape[axis]))
            out -= 1
        else:
            raise CannotTranslate("indexing by other than numbers")
        axis += place is not None
        out += 1
    return cuts, picked, added


def _picked(
    e: Emitter, input: str, cuts: list[tuple[int, int, int, int]], picked: list[tuple[int, int]], added: list[int]
) -> str:
    """Emit the slices, then the picks from the last axis on, then the new axes."""
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if cuts:
        names = ("axes", "starts", "ends", "steps")
        lists = {name: [cut[index] for cut in cuts] for index, name in enumerate(names)}
        order = ("starts", "ends", "axes", "steps")
        steps.append(("Slice", [e.integers(name, lists[name]) for name in order], {}))
    for axis, number in reversed(picked):
        index = e.weight(f"{e.current}/index", np.array(number, np.int64))
        steps.append(("Gather", [index], {"axis": axis}))
    if added:
        steps.append(("Unsqueeze", [e.integers("added", added)], {}))
    if not steps:
        return input
    for operator, others, attributes in steps[:-1]:
        input = e.step(operator.lower(), operator, [input, *others], (), **attributes)
    operator, others, attributes = steps[-1]
    return e.emit(operator, [input, *others], **attributes)


def narrow(e: Emitter, input: str, dim: int, start: int, length: int) -> str:
    """Slice along one axis."""
    axis = axis_of(e, input, dim)
    begin = start % e.shape(input)[axis]
    return str(item(e, input, (*[slice(None)] * axis, slice(begin, begin + length))))


def select(e: Emitter, input: str, dim: int, index: int) -> str:
    """Gather of one place along an axis, which goes."""
    return str(item(e, input, (*[slice(None)] * axis_of(e, input, dim), index)))


def unbind(e: Emitter, input: str, dim: int = 0) -> tuple[str, ...]:
    """Gather of each place along an axis, which goes."""
    axis, made = axis_of(e, input, dim), []
    for index, (name, shape) in enumerate(e.parts):
        place = e.weight(f"{e.current}/index", np.array(index, np.int64))
        made.append(e.step(name, "Gather", [input, place], shape, axis=axis))
    return tuple(made)


def size(e: Emitter, input: str, dim: int | None = None) -> Any:
    """Return the shape, or one size of it, with the batch left open."""
    shape = (BATCH, *e.shape(input)[1:])
    return shape if dim is None else shape[dim]


def attribute(e: Emitter, input: Any, name: str) -> Any:
    """Return ``x.shape``, ``x.mT``, or the values of an extreme; no other attribute is known."""
    if name == "values" and isinstance(input, tuple):
        return input[0]
    if name == "mT":
        return transpose(e, input, -2, -1)
    if name != "shape" or not isinstance(input, str):
        raise CannotTranslate(f"the attribute {name}")
    return size(e, input)
