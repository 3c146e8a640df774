"""Relations find backends that mix rows up, whatever the network; a right one holds them all, bit for bit."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from engineworks.runtime.relations import relations

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((6, 4))
INPUTS: Mapping[str, Any] = {"x": RNG.standard_normal((8, 6)).astype(np.float32)}


def right(inputs: Mapping[str, Any]) -> list[Any]:
    return [np.stack([np.tanh(row @ WEIGHTS) for row in inputs["x"]])]  # row by row: the same bits in every batch


def faulty(change: Callable[[Any, Any], Any]) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda inputs: [change(inputs["x"], right(inputs)[0].copy())]


def numbered(x: Any, y: Any) -> Any:
    return y + np.arange(len(y))[:, None] * 0.1


def leaking(x: Any, y: Any) -> Any:
    return y + 0.05 * x.mean()


def stale(x: Any, y: Any) -> Any:
    y[-1] = y[0]
    return y


def by_size(x: Any, y: Any) -> Any:
    return y * (1 + 0.01 * len(y))


def missing(x: Any, y: Any) -> Any:
    y[2:3] = np.nan
    return y


FAULTS: dict[str, tuple[Callable[[Any, Any], Any], set[str]]] = {
    "answers that depend on the place": (numbered, {"permutation", "duplicates", "split"}),
    "answers that depend on the neighbours": (leaking, {"neighbours", "split"}),
    "the last row never computed": (stale, {"permutation", "split"}),
    "answers that depend on the batch size": (by_size, {"split"}),
    "a row that is no number": (missing, {"permutation", "duplicates", "neighbours", "split"}),
}


def test_a_right_backend_holds_every_relation_bit_for_bit() -> None:
    found = list(relations(right, INPUTS, 1))
    assert [relation.name for relation in found] == ["permutation", "duplicates", "neighbours", "split"]
    assert all(relation.sqnr_db == math.inf for relation in found)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_backend_breaks_those_that_tell(fault: str) -> None:
    change, broken = FAULTS[fault]
    low = {relation.name for relation in relations(faulty(change), INPUTS, 1) if relation.sqnr_db < 60}
    assert broken <= low


def test_a_fixed_batch_is_not_split() -> None:
    assert "split" not in {relation.name for relation in relations(right, INPUTS, 8)}
    assert {relation.batch for relation in relations(right, INPUTS, 4)} == {8, 4}
