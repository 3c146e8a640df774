"""What every source of calibration images has in common: a stream of rows, a hash, a description, labels."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import InputError
from engineworks.runtime.manifest import Tensor

Array = npt.NDArray[np.generic]
Row = dict[str, Array]
OnSkip = Callable[[str, str], None]
LEAST = 8  # fewer images say too little of a range
_BROKEN = 0.05  # the share of images that may be broken
_SHOWN = 3


@dataclass(frozen=True)
class Item:
    """One image of a source: its name, its class if known, and how it is read.

    ``load`` returns input name → array with a batch axis of 1, or raises InputError; ``content`` returns the bytes
    that its hash covers.
    """

    name: str
    label: int | None
    load: Callable[[], Row]
    content: Callable[[], bytes]


def warn_of(name: str, reason: str) -> None:
    """Say which image is left out, as a Python warning."""
    warnings.warn(f"calibration: left out {name}: {reason}", stacklevel=2)


@dataclass(frozen=True)
class Images:
    """Calibration images: iterating reads them one by one, as input name → array with a batch axis of 1.

    Attributes:
        description: where they come from, for the manifest; no folder of this machine.
        count: how many were chosen; ``len`` gives it.
        items: begins a new pass over them.
        on_skip: told the name of each image that cannot be read, and the reason.

    A broken image is skipped; iterating raises InputError once more than 5 % of them are.
    """

    description: str
    count: int
    items: Callable[[], Iterable[Item]]
    on_skip: OnSkip = warn_of

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return (row for row, _ in self.labelled())

    def labelled(self) -> Iterator[tuple[Row, int | None]]:
        """Yield each image with its class, None where it is not known.

        Raises:
            InputError: more than 5 % of the images are broken; three are named.
        """
        broken: list[str] = []
        for item in self.items():
            try:
                row = item.load()
            except InputError as error:
                reason = str(error).removeprefix(f"{item.name}: ")
                broken.append(f"{item.name} ({reason})")
                self._check(broken)
                self.on_skip(item.name, reason)
                continue
            yield row, item.label

    def _check(self, broken: Sequence[str]) -> None:
        if len(broken) > _BROKEN * self.count:
            raise InputError(
                f"calibration images, {self.description}: {len(broken)} of {self.count} cannot be used, at most 5 % "
                f"may be: {'; '.join(broken[:_SHOWN])}. Mend or remove them."
            )

    @cached_property
    def sha256(self) -> str:
        """The hash of the images' content, in their order: of the digests of each; names do not matter."""
        return hashlib.sha256(b"".join(self.digests())).hexdigest()

    def digests(self) -> Iterator[bytes]:
        """Yield the sha256 of each image's content."""
        return (hashlib.sha256(item.content()).digest() for item in self.items())

    def divide(self, share: int = 4, least: int = 1) -> "tuple[Images, Images]":
        """Split into those to fit on and those held out, so that neither has seen the other.

        Args:
            share: every so many-th is held out.
            least: of images in each part; more are held out where that takes it.

        Raises:
            InputError: there are fewer than twice ``least``.
        """
        if self.count < 2 * least:
            raise InputError(
                f"calibration images, {self.description}: {2 * least} or more are needed, {least} to fit on and {least}"
                f" held out, for the network's batch is fixed; got {self.count}."
            )
        share = min(share, self.count // least)
        held = set(range(share - 1, self.count, share))
        return self._part(held, inside=False), self._part(held, inside=True)

    def _part(self, numbers: set[int], *, inside: bool) -> "Images":
        items, whole = self.items, self.count
        count = len(numbers) if inside else whole - len(numbers)
        words = f"{self.description}, {count} {'held out' if inside else 'to fit on'}"

        def part() -> Iterator[Item]:
            return (item for number, item in enumerate(items()) if (number in numbers) == inside)

        return replace(self, description=words, count=count, items=part)


def choose(names: Sequence[str], classes: Sequence[str], count: int, seed: int) -> list[int]:
    """Choose ``count`` of the names, evenly over their classes; the same ones every time.

    Returns:
        indexes, ascending; all where there are no more than ``count``.

    Within a class, and among classes, the order is that of the sha256 of seed and name: a name added elsewhere does
    not change who comes first.
    """
    ranks: dict[str, list[int]] = {}
    for index in sorted(range(len(names)), key=lambda index: _lot(seed, names[index])):
        ranks.setdefault(classes[index], []).append(index)
    order = sorted(ranks, key=lambda name: _lot(seed, name))
    rounds = range(max((len(members) for members in ranks.values()), default=0))
    dealt = [ranks[name][turn] for turn in rounds for name in order if turn < len(ranks[name])]
    return sorted(dealt[:count])


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()


def check_row(name: str, row: Row, inputs: Sequence[Tensor]) -> Row:
    """Hold a row against the network's inputs: names, dtypes, shapes.

    Raises:
        InputError: naming the image, the input, what is expected and what came.
    """
    wanted = [tensor.name for tensor in inputs]
    if sorted(row) != sorted(wanted):
        raise InputError(f"{name}: expected the inputs {', '.join(wanted)}, got {', '.join(sorted(row)) or 'none'}.")
    for tensor in inputs:
        array, shape = row[tensor.name], tensor.shape[1:]
        fits = array.ndim == len(tensor.shape) and all(
            isinstance(axis, str) or axis == size for axis, size in zip(shape, array.shape[1:], strict=True)
        )
        if array.dtype.name != tensor.dtype or not fits:
            expected = f"{tensor.dtype} ({', '.join(map(str, shape))})"
            raise InputError(
                f"{name}: input {tensor.name!r}: expected {expected}, got {array.dtype} {array.shape[1:]}. "
                "Prepare it as the network's inputs are."
            )
    return row


def array_content(row: Row) -> bytes:
    """Return what stands for arrays in a hash: names, dtypes, shapes and values."""
    parts = []
    for name in sorted(row):
        array = row[name]
        parts += [f"{name} {array.dtype.str} {array.shape}\n".encode(), np.ascontiguousarray(array).tobytes()]
    return b"".join(parts)
