"""Fitting and measuring never share an image where there are enough; a fixed batch is filled or refused."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from engineworks.calibration.parts import MOST_FIT, MOST_HELD, fixed_rows, grouped, rows_of, split
from engineworks.runtime.errors import ExportError


def graph(batch: int | str) -> Any:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"], "r")
    made = helper.make_graph([node], "g", ends[:1], ends[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def numbered(first: int, count: int) -> list[dict[str, Any]]:
    return [{"x": np.arange(first, first + count, dtype=np.float32)[:, None]}]


def seen(batches: Any) -> list[int]:
    return [int(value) for batch in batches for value in batch["x"].ravel()]


def test_rows_come_apart_and_together_again() -> None:
    rows = list(rows_of(numbered(0, 7)))
    assert [row["x"].shape for row in rows] == [(1, 1)] * 7
    assert [len(batch["x"]) for batch in grouped(rows, 0, 3)] == [3, 3, 1]
    assert [len(batch["x"]) for batch in grouped(rows, 3)] == [3, 3]  # the seventh fills none
    with pytest.raises(ExportError, match="fixed at 8, got 7 images for a part"):
        grouped(rows, 8)


def test_a_fixed_batch_is_known_from_the_graph() -> None:
    assert (fixed_rows(graph(3)), fixed_rows(graph("n"))) == (3, 0)


def test_without_a_held_out_part_the_last_quarter_is_measured_on() -> None:
    fit, held, notes = split(graph("n"), numbered(0, 20), None, "normal")
    assert (seen(fit), seen(held), notes) == ([*range(15)], [*range(15, 20)], ())
    both = split(graph("n"), numbered(0, 3), None, "normal")
    assert seen(both[0]) == seen(both[1]) and both[2] == ("3 images: none could be held out of the fit.",)


@pytest.mark.parametrize("fixed", [4, MOST_HELD + 5, MOST_FIT + 20])
def test_a_fixed_batch_is_filled_in_both_parts_however_large_it_is(fixed: int) -> None:
    fit, held, _ = split(graph(fixed), numbered(0, fixed), numbered(1000, fixed), "high")
    assert seen(fit) == [*range(fixed)] and seen(held)[:fixed] == [*range(1000, 1000 + fixed)]


def test_no_more_are_measured_on_than_the_most() -> None:
    _, held, _ = split(graph("n"), numbered(0, 200), numbered(1000, 200), "high")
    assert len(seen(held)) == MOST_HELD
