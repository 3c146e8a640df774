"""Rows one by one, and batches made of them: what ``infer_batch`` takes apart and puts together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.arrays import Give, as_numpy, giver
from engineworks.runtime.checks import Spec, check_row, named
from engineworks.runtime.errors import InputError

Array = npt.NDArray[Any]


def rows_of(specs: Sequence[Spec], rows: Any) -> Iterator[Any]:
    """Go through the rows of an array, of a mapping of arrays, or of any iterable, left lazy.

    Raises:
        InputError: not iterable, or a mapping with other names, or of arrays with different numbers of rows.
    """
    if isinstance(rows, Mapping):
        columns = named(specs, rows)
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"infer_batch: expected as many rows in every input, got {sizes}.")
        return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    if not isinstance(rows, Iterable):
        raise InputError(f"infer_batch: expected an array or an iterable of rows, got {type(rows).__name__}.")
    return iter(rows)


def stacked(specs: Sequence[Spec], some: Sequence[Any], first: int) -> tuple[dict[str, Array], Give | None]:
    """Make a batch of rows.

    Args:
        specs: what the network takes.
        some: rows without a batch axis, or name → row.
        first: the number of the first, for messages.

    Returns:
        The batch by name, and what turns answers into the rows' kind.

    Raises:
        InputError: a row that does not fit, by its number.
    """
    columns: dict[str, list[Array]] = {spec.tensor.name: [] for spec in specs}
    give = giver(value for row in some for value in (row.values() if isinstance(row, Mapping) else (row,)))
    for number, row in enumerate(some, first):
        given = named(specs, row)
        for spec in specs:
            array = as_numpy(spec.tensor.name, given[spec.tensor.name], spec.wanted)
            check_row(spec, number, array)
            columns[spec.tensor.name].append(array)
    return {name: np.stack(column) for name, column in columns.items()}, give


def padded(arrays: Mapping[str, Array], missing: int) -> dict[str, Array]:
    """Repeat the last row of every array ``missing`` times."""
    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in arrays.items()}
