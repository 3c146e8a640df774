"""What a right backend must do whatever the network is: four relations between its own answers, no reference needed.

A wrong engine has been seen to answer four identical rows with four answers. A row's answer may depend on nothing but
the row: not on its place, its neighbours, or how many there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engineworks.runtime.compare import Floats, sqnr
from engineworks.runtime.protocol import Array

Run = Callable[[Mapping[str, Array]], Sequence[Array]]


@dataclass(frozen=True)
class Relation:
    """One relation at one batch size: ``sqnr_db`` of the two answers, the worst output's; infinite where equal."""

    name: str
    batch: int
    sqnr_db: float


def relations(run: Run, inputs: Mapping[str, Array], smallest: int) -> Iterator[Relation]:
    """Hold a backend's answers against each other.

    Args:
        run: from named rows to the outputs.
        inputs: a batch of two rows or more, not all alike.
        smallest: the fewest rows that one call takes.

    Yields:
        ``permutation``: the rows in reverse, answered in reverse. ``duplicates``: the first row throughout, one answer
        throughout. ``neighbours``: the first half beside other rows. ``split``: the rows in calls of ``smallest``,
        where the batch is free.
    """
    count = len(next(iter(inputs.values())))
    whole = run(inputs)
    places = np.arange(count)
    yield _related("permutation", whole, run(_take(inputs, places[::-1])), places[::-1])
    one = run(_take(inputs, np.zeros(count, np.intp)))
    yield _related("duplicates", [np.repeat(output[:1], count, axis=0) for output in one], one, places)
    half = places < (count + 1) // 2
    others = run(_take(inputs, np.where(half, places, (count + 1) // 2 - 1)))
    yield _related("neighbours", [o[half] for o in whole], [o[half] for o in others], places[: int(half.sum())])
    if smallest < count and count % smallest == 0:
        parts = [run(_take(inputs, places[start : start + smallest])) for start in range(0, count, smallest)]
        yield _related("split", whole, [np.concatenate(each) for each in zip(*parts, strict=True)], places)


def _take(inputs: Mapping[str, Array], rows: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> dict[str, Array]:
    return {name: np.ascontiguousarray(array[rows]) for name, array in inputs.items()}


def _related(
    name: str, expected: Sequence[Array], got: Sequence[Array], rows: "np.ndarray[tuple[int], np.dtype[np.intp]]"
) -> Relation:
    pairs = [(np.asarray(e, np.float64)[rows], np.asarray(g, np.float64)) for e, g in zip(expected, got, strict=True)]
    return Relation(name, len(pairs[0][1]), min(_db(*pair) for pair in pairs))


def _db(expected: Floats, got: Floats) -> float:
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return float("-inf")
    return sqnr(expected, got)
