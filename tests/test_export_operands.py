"""How rules read their arguments, and what keeps the batch open."""

from typing import Any

import pytest
import torch

from engineworks.export.emitter import CannotTranslate, Emitter
from engineworks.export.operands import (
    BATCH,
    axes_of,
    axis_of,
    check_broadcast,
    check_rank,
    constants,
    numbers,
    reshaped,
    spread,
    tensor,
)


def emitter(result: tuple[int, ...] = (2, 3, 4)) -> Emitter:
    made = Emitter(rows=2, shapes={"x": (2, 3, 4), "row": (2, 4)}, results={"op": result})
    made.current = "op"
    return made


def test_a_size_is_spelled_out_for_each_axis() -> None:
    assert spread(2, 3) == spread([2], 3) == [2, 2, 2]
    assert spread((2, 3)) == [2, 3]
    wrong: Any
    for wrong in ((), (1, 2, 3), (1, 2.5)):
        with pytest.raises(CannotTranslate, match="for 2 axes"):
            spread(wrong)


def test_numbers_come_one_by_one_or_in_a_list() -> None:
    assert numbers((1, BATCH)) == numbers(((1, BATCH),)) == [1, BATCH]


def test_operands_are_values_constants_or_numbers() -> None:
    e = emitter()
    assert tensor(e, "x", "left") == "x"
    assert tensor(e, 2, "left") == "op/left"
    assert tensor(e, torch.ones(3), "right") == "op/right"
    for wrong in (True, torch.ones(3).double(), None):
        with pytest.raises(CannotTranslate, match="an operand of type"):
            tensor(e, wrong, "left")
    with pytest.raises(CannotTranslate, match="the batch size as a number"):
        tensor(e, BATCH, "left")


def test_constants_are_vectors() -> None:
    assert constants(emitter(), weight=torch.ones(3)) == ["op/weight"]
    for wrong in ("x", torch.ones(2, 3)):
        with pytest.raises(CannotTranslate, match="a weight that is computed from the input, or no vector"):
            constants(emitter(), weight=wrong)


def test_an_axis_is_counted_from_the_front_and_is_not_the_batch() -> None:
    e = emitter()
    assert axis_of(e, "x", -1) == 2 and axes_of(e, "x", (1, -1), "a sum") == [1, 2]
    for wrong in (0, -3, "N"):
        with pytest.raises(CannotTranslate):
            axis_of(e, "x", wrong)
    with pytest.raises(CannotTranslate, match="a sum over everything"):
        axes_of(e, "x", None, "a sum")


def test_ranks_and_broadcasts_are_held_to_the_batch() -> None:
    e = emitter()
    check_rank(e, "x", 3)
    with pytest.raises(CannotTranslate, match="3 axes where 4"):
        check_rank(e, "x", 4)
    check_broadcast(e, "x", torch.ones(3, 4), torch.ones(1, 3, 4), 2.0)
    with pytest.raises(CannotTranslate, match="different rank"):
        check_broadcast(e, "x", "row")
    with pytest.raises(CannotTranslate, match="along the batch"):
        check_broadcast(e, "x", torch.ones(2, 3, 4))


def test_a_reshape_keeps_the_batch_and_vanishes_where_it_does_nothing() -> None:
    assert reshaped(emitter(), "x") == "x"
    e = emitter((2, 12))
    assert reshaped(e, "x") == "op" and e.nodes[0].op_type == "Reshape"
    with pytest.raises(CannotTranslate, match="moves the batch"):
        reshaped(emitter((6, 4)), "x")
