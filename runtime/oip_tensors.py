"""Tensors of a request: from JSON numbers or bytes to arrays, checked against the model before memory is taken."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.manifest import Tensor
from engineworks.runtime.oip_dtypes import DTYPES, protocol_name
from engineworks.runtime.oip_errors import bad

Array = npt.NDArray[Any]
_KINDS: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}  # what JSON may hold; whole numbers for all others


def declared(tensor: Tensor, datatype: object, shape: object, largest: int) -> tuple[int, ...]:
    """Hold what a request says of an input against the model; nothing is allocated.

    Args:
        tensor: the model's input.
        datatype: as the request has it.
        shape: as the request has it.
        largest: the largest batch.

    Returns:
        The shape: whole numbers of 1 or more.

    Raises:
        Refusal: 400.
    """
    wanted = protocol_name(tensor.dtype)
    if datatype != wanted:
        raise bad(f"input {tensor.name!r}: expected datatype {wanted}, got {str(datatype)[:40]!r}.")
    if not isinstance(shape, list) or any(type(axis) is not int for axis in shape):
        raise bad(f"input {tensor.name!r}: expected a shape of whole numbers, got {str(shape)[:80]}.")
    fits = len(shape) == len(tensor.shape) and all(
        axis >= 1 and (isinstance(size, str) or axis == size) for axis, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise bad(f"input {tensor.name!r}: expected shape {shown(tensor.shape)}, got {str(shape)[:80]}.")
    if isinstance(tensor.shape[0], str) and shape[0] > largest:
        raise bad(f"input {tensor.name!r}: expected a batch of at most {largest}, got {str(shape[0])[:40]}.")
    return tuple(shape)


def shown(shape: Sequence[int | str]) -> str:
    """Write a model's shape as the protocol does: -1 where an axis is free."""
    return str(free_axes(shape))


def free_axes(shape: Sequence[int | str]) -> list[int]:
    """Return a model's shape with -1 where an axis is free."""
    return [-1 if isinstance(axis, str) else axis for axis in shape]


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], content: memoryview) -> Array:
    """View bytes as a tensor: little endian, row by row; copied only where memory is not aligned.

    Raises:
        Refusal: 400; another number of bytes than the shape needs.
    """
    dtype = DTYPES[datatype]
    needed = math.prod(shape) * dtype.itemsize
    if len(content) != needed:
        raise bad(f"input {name!r}: expected {needed} bytes for shape {list(shape)}, got {len(content)}.")
    array: Array = np.frombuffer(content, dtype).reshape(shape)
    if datatype == "BOOL":
        array = array.view(np.uint8) != 0
    return array if array.flags.aligned else array.copy()


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """Make a tensor of JSON numbers, flat or nested as the shape is.

    Raises:
        Refusal: 400; not numbers, numbers of another kind or out of range, or not as many as the shape needs.
    """
    flat = _flat(name, shape, data)
    dtype = DTYPES[datatype]
    kinds = set(map(type, flat))
    allowed = _KINDS.get(dtype.kind, {int})
    if not kinds <= allowed:
        wanted = " or ".join(sorted(kind.__name__ for kind in allowed))
        raise bad(f"input {name!r}: expected {wanted} in 'data' for {datatype}, got {_strange(kinds - allowed)}.")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype).reshape(shape)
    except (OverflowError, ValueError) as error:
        raise bad(f"input {name!r}: a number in 'data' is out of the range of {datatype}.") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise bad(f"input {name!r}: a number in 'data' is out of the range of {datatype}.")
    return array


def _strange(kinds: set[type]) -> str:
    return ", ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds))


def _flat(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """Take nested lists apart; each level must be as long as the shape says, or everything flat."""
    count = math.prod(shape)
    if not isinstance(data, list):
        raise bad(f"input {name!r}: expected 'data' to be a list.")
    flat = data
    if flat and isinstance(flat[0], list):
        flat = [data]
        for axis in shape:
            if set(map(type, flat)) != {list} or set(map(len, flat)) != {axis}:
                raise bad(f"input {name!r}: 'data' is nested otherwise than shape {list(shape)} says.")
            flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise bad(f"input {name!r}: expected {count} numbers for shape {list(shape)}, got {len(flat)}.")
    return flat
