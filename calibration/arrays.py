"""Calibration inputs from ``.npy`` and ``.npz`` files, one row in memory at a time."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from engineworks.calibration.source import Images, Item, OnSkip, Row, array_content, check_row, choose, warn_of
from engineworks.runtime.errors import InputError
from engineworks.runtime.manifest import Tensor

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class _Column:
    """One array of a file, read from its beginning to its end."""

    stream: IO[bytes]
    rows: int
    shape: tuple[int, ...]
    dtype: "np.dtype[np.generic]"

    def next_row(self, file: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
        size = prod(self.shape) * self.dtype.itemsize
        content = self.stream.read(size)
        if len(content) < size:
            raise InputError(f"{file}: the array ends early. Write the file again.")
        return np.frombuffer(content, self.dtype).reshape(1, *self.shape)


def open_arrays(
    file: Path, inputs: Sequence[Tensor], count: int, *, seed: int = 0, on_skip: OnSkip = warn_of
) -> Images:
    """Take the rows of arrays as the network's inputs, as they are.

    Args:
        file: ``.npz`` with one array for each input under its name (or one array under any name for the only input),
            or ``.npy`` for the only input; the first axis counts the images.
        inputs: the network's inputs; each row is checked against them.
        count: so many rows are chosen, the same ones every time.
        seed: of that choice.
        on_skip: told of each row that does not fit.

    Raises:
        InputError: no such arrays, Python objects, arrays in Fortran's order, of different lengths, or a damaged file.
    """
    with ExitStack() as stack:
        columns = _open(stack, file, inputs)
        rows = {name: column.rows for name, column in columns.items()}
        _check_columns(file.name, columns)
        for name, column in columns.items():  # before any row is read: what does not fit will not fit later
            empty = np.empty((1, *column.shape), column.dtype)
            check_row(file.name, {name: empty}, [tensor for tensor in inputs if tensor.name == name])
    total = next(iter(rows.values()))
    chosen = set(choose([str(row) for row in range(total)], [""] * total, count, seed))
    words = f"{len(chosen)} of {total} rows of {file.name}"
    return Images(words, len(chosen), lambda: _items(file, inputs, chosen), on_skip)


def _items(file: Path, inputs: Sequence[Tensor], chosen: set[int]) -> Iterator[Item]:
    with ExitStack() as stack:
        columns = _open(stack, file, inputs)
        for number in range(max(chosen) + 1):
            row = {name: column.next_row(file.name) for name, column in columns.items()}
            if number in chosen:
                yield _item(f"{file.name}[{number}]", row)


def _item(name: str, row: Row) -> Item:
    return Item(name, None, lambda: row, lambda: array_content(row))


def _open(stack: ExitStack, file: Path, inputs: Sequence[Tensor]) -> dict[str, _Column]:
    try:
        if file.suffix == ".npy":
            if len(inputs) != 1:
                raise InputError(f"{file.name}: the network has {len(inputs)} inputs. Save them by name with np.savez.")
            return {inputs[0].name: _column(stack.enter_context(file.open("rb")), file.name)}
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = [name.removesuffix(".npy") for name in archive.namelist()]
        opened = _members(file.name, members, inputs)
        return {name: _column(stack.enter_context(archive.open(f"{key}.npy")), file.name) for name, key in opened}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{file.name}: cannot be read as arrays ({error}). Write it with np.save or savez.") from error


def _members(file: str, members: list[str], inputs: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Pair inputs with members of the archive: by name, or one with one."""
    wanted = [tensor.name for tensor in inputs]
    if len(members) == len(wanted) == 1:
        return [(wanted[0], members[0])]
    if not set(wanted) <= set(members):
        raise InputError(f"{file}: expected arrays {', '.join(wanted)}, got {', '.join(members) or 'none'}.")
    return [(name, name) for name in wanted]


def _column(stream: IO[bytes], file: str) -> _Column:
    read: Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[np.generic]]] | None
    read = _HEADERS.get(npy.read_magic(stream))
    if read is None:
        raise InputError(f"{file}: an array with a header of an unknown version. Write it with np.save.")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or dtype.fields or (fortran and len(shape) > 1) or not shape:
        found = "Fortran's order" if fortran else f"{dtype} {shape}"
        raise InputError(
            f"{file}: expected a plain array with a first axis, got {found}. np.ascontiguousarray mends it."
        )
    return _Column(stream, shape[0], shape[1:], dtype)


def _check_columns(file: str, columns: dict[str, _Column]) -> None:
    rows = {name: column.rows for name, column in columns.items()}
    if len(set(rows.values())) != 1 or not all(rows.values()):
        raise InputError(f"{file}: expected as many rows, 1 or more, of every input, got {rows}.")
