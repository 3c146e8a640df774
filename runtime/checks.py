"""What a network's inputs must be, and what is said of those that are something else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engineworks.runtime.arrays import as_numpy
from engineworks.runtime.errors import InputError
from engineworks.runtime.manifest import Batch, Tensor

Array = npt.NDArray[Any]
Nan = Literal["pass", "refuse"]


@dataclass(frozen=True)
class Spec:
    """One input, made ready to be compared at every call; ``row`` is its shape without the batch."""

    tensor: Tensor
    dtype: np.dtype[Any]
    row: tuple[int | str, ...]
    free_batch: bool
    wanted: str


@dataclass(frozen=True)
class Contract:
    """What ``infer`` takes: every input, the batches from ``smallest`` to ``largest``, and what becomes of NaN.

    ``only`` is the one input of a network that has no other and a free batch, where NaN is passed on.
    """

    specs: tuple[Spec, ...]
    smallest: int
    largest: int
    limited: bool
    nan: Nan
    only: Spec | None


def contract(inputs: Sequence[Tensor], batch: Batch, max_batch: int | None = None, nan: Nan = "pass") -> Contract:
    """Prepare the checks of a bundle's inputs.

    Args:
        inputs: as the manifest has them.
        batch: the sizes that the bundle was checked for.
        max_batch: the largest that is taken here; None for the bundle's own.
        nan: whether NaN and infinity in an input are passed on to the network or refused.

    Raises:
        InputError: ``max_batch`` lies outside the bundle's sizes, or ``nan`` is unknown.
    """
    if max_batch is not None and not batch.min <= max_batch <= batch.max:
        raise InputError(f"max_batch: expected {batch.min} to {batch.max}, as the bundle allows, got {max_batch}.")
    if nan not in {"pass", "refuse"}:
        raise InputError(f"nan: expected pass or refuse, got {nan!r}.")
    specs = tuple(_spec(tensor) for tensor in inputs)
    only = specs[0] if len(specs) == 1 and specs[0].free_batch and nan == "pass" else None
    return Contract(specs, batch.min, max_batch or batch.max, max_batch is not None, nan, only)


def plain_rows(rules: Contract, inputs: Any) -> int:
    """Return the number of rows of an array that fits as it is, seen at a glance; 0 where one must look closer."""
    only = rules.only
    if only is None or type(inputs) is not np.ndarray or inputs.dtype is not only.dtype:
        return 0
    shape = inputs.shape
    if shape[1:] != only.row or not inputs.flags.c_contiguous:
        return 0
    rows: int = shape[0]
    return rows if rules.smallest <= rows <= rules.largest else 0


def named(specs: Sequence[Spec], inputs: Any) -> dict[str, Any]:
    """Return the inputs by name, not yet looked into.

    Raises:
        InputError: one array where there are several inputs, or names that are not theirs.
    """
    expected = [spec.tensor.name for spec in specs]
    if type(inputs) is np.ndarray or not isinstance(inputs, Mapping):
        if len(expected) != 1:
            raise InputError(f"infer: expected a dict with {', '.join(expected)}, got one array.")
        return {expected[0]: inputs}
    given = dict(inputs)
    if set(given) != set(expected):
        raise InputError(
            f"infer: expected the inputs {', '.join(expected)}, got {', '.join(map(str, given)) or 'none'}."
        )
    return given


def checked(rules: Contract, given: Mapping[str, Any]) -> tuple[dict[str, Array], int]:
    """Return the inputs as contiguous numpy arrays, and the number of rows.

    Raises:
        InputError: a dtype, rank, shape or batch that does not fit, or NaN where it is refused.
    """
    arrays = dict[str, Array]()
    for spec in rules.specs:
        array = given[spec.tensor.name]
        arrays[spec.tensor.name] = (
            array if type(array) is np.ndarray else as_numpy(spec.tensor.name, array, spec.wanted)
        )
    rows = fitting(rules, arrays)
    if rules.nan == "refuse":
        _check_finite(arrays)
    return {name: a if a.flags.c_contiguous else np.ascontiguousarray(a) for name, a in arrays.items()}, rows


def fitting(rules: Contract, arrays: Mapping[str, Array]) -> int:
    """Return the number of rows of arrays whose dtypes and shapes fit; nothing else of them is looked at.

    Raises:
        InputError: a dtype, rank, shape or batch that does not fit.
    """
    rows = 0
    for spec in rules.specs:
        array = arrays[spec.tensor.name]
        shape = array.shape
        if array.dtype != spec.dtype or shape[1:] != spec.row or not (shape and spec.free_batch):
            _check_array(spec, array)
        rows = shape[0] if shape else 1
    if len(arrays) > 1 or not rules.smallest <= rows <= rules.largest:
        _check_batch(rules, arrays)
    return rows


def check_row(spec: Spec, number: int, row: Array) -> None:
    """Refuse one of many rows that does not fit, by its place.

    Raises:
        InputError: another dtype or shape than one row of the input has.
    """
    if row.dtype != spec.dtype or row.shape != spec.row:
        raise InputError(
            f"infer_batch: row {number} of input {spec.tensor.name!r}: expected {spec.tensor.dtype} "
            f"{_shown(spec.row)}, got {row.dtype} {row.shape}. {_row_mend(spec, row)}"
        )


def _spec(tensor: Tensor) -> Spec:
    free = bool(tensor.shape) and isinstance(tensor.shape[0], str)
    wanted = f"{tensor.dtype} {_shown(tensor.shape)}"
    return Spec(tensor, np.dtype(tensor.dtype), tensor.shape[1:], free, wanted)


def _shown(shape: Sequence[int | str]) -> str:
    axes = ["N" if isinstance(axis, str) else str(axis) for axis in shape]
    return f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"


def _check_array(spec: Spec, array: Array) -> None:
    """Look closer, for an axis beside the batch may be free too; say what does not fit."""
    tensor = spec.tensor
    fits = len(array.shape) == len(tensor.shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.shape, array.shape, strict=True)
    )
    if fits and array.dtype == spec.dtype:
        return
    raise InputError(
        f"input {tensor.name!r}: expected {spec.wanted}, got {array.dtype} {array.shape}. {_mend(tensor, array, fits)}"
    )


def _mend(tensor: Tensor, array: Array, fits: bool) -> str:
    if array.dtype == np.uint8 and tensor.dtype == "float32":
        return "Pass pictures to classify(), or through preprocess() first."
    if fits:
        return f"Convert it: x.astype('{tensor.dtype}')."
    if len(array.shape) == len(tensor.shape) - 1:
        return "Add a batch axis: x[None]."
    return _shape_mend(tensor, array)


def _shape_mend(tensor: Tensor, array: Array) -> str:
    if array.shape[1:] == tensor.shape[1:]:
        return "This bundle has one batch size: infer_batch() takes any number of rows."
    for mend, axes in (("first", (0, 3, 1, 2)), ("last", (0, 2, 3, 1))):
        if array.ndim == 4 and array.transpose(axes).shape[1:] == tensor.shape[1:]:
            return f"Put the channels {mend}: x.transpose{axes}."
    return "Resize it to that shape."


def _row_mend(spec: Spec, row: Array) -> str:
    if row.shape == spec.row:
        return f"Convert it: x.astype('{spec.tensor.dtype}')."
    if row.shape[1:] == spec.row:
        return "Each item is one row, without a batch axis."
    return "Resize it to that shape."


def _check_batch(rules: Contract, arrays: Mapping[str, Array]) -> None:
    sizes = {spec.tensor.name: arrays[spec.tensor.name].shape[0] for spec in rules.specs if spec.free_batch}
    if len(set(sizes.values())) > 1:
        raise InputError(f"infer: expected one batch size for all inputs, got {sizes}.")
    for name, size in sizes.items():
        if rules.smallest <= size <= rules.largest:
            continue
        mend = "Split it with infer_batch()" if size > rules.largest else "Repeat rows" if size else "Pass a row"
        other = "load it with a larger max_batch" if rules.limited else "re-export with --batch MIN:OPT:MAX"
        raise InputError(
            f"input {name!r}: expected a batch of {rules.smallest} to {rules.largest}, got {size}. {mend}, or {other}."
        )


def _check_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        where = np.argwhere(~np.isfinite(array))
        place = tuple(int(axis) for axis in where[0])
        raise InputError(
            f"input {name!r}: expected finite numbers, got {array[place]} at {place} and {len(where)} such values in "
            "all. Mend what prepares it, or load the bundle with nan='pass'."
        )
