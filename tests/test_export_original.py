"""A run of any number of rows out of one that takes a fixed number; and what an original says of itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engineworks.export.inputs import InputSpec
from engineworks.export.original import PYTORCH, TITLES, in_batches, of_module


def rows(count: int, width: int = 3) -> Tensor:
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width)


def only(size: int, run: Callable[..., Any]) -> Callable[..., Any]:
    """The same run, which takes nothing but ``size`` rows."""

    def checked(*tensors: Tensor) -> Any:
        assert [len(tensor) for tensor in tensors] == [size] * len(tensors)
        return run(*tensors)

    return checked


@given(st.integers(1, 20), st.integers(1, 9))
def test_a_function_of_each_row_answers_in_batches_as_at_once(count: int, size: int) -> None:
    def run(x: Tensor, y: Tensor) -> dict[str, Any]:
        return {"sum": x + y, "parts": [x * 2, (y - 1).argmax(1)], "nothing": None}

    x, y = rows(count), -rows(count).flip(0)
    whole, parts = run(x, y), in_batches(only(size, run), size)(x, y)
    assert list(parts) == list(whole)
    assert torch.equal(parts["sum"], whole["sum"])
    assert [torch.equal(a, b) for a, b in zip(parts["parts"], whole["parts"], strict=True)] == [True, True]
    assert parts["nothing"] is None


@pytest.mark.parametrize(("count", "size", "batches"), [(8, 3, 3), (3, 8, 1), (8, 8, 1), (9, 8, 2), (1, 1, 1)])
def test_a_batch_that_is_not_full_is_filled_up_and_the_filling_dropped(count: int, size: int, batches: int) -> None:
    seen: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    assert torch.equal(in_batches(run, size)(rows(count)), rows(count))
    assert [len(batch) for batch in seen] == [size] * batches
    filled = torch.cat(seen)[count:]
    assert all(any(torch.equal(row, other) for other in rows(count)) for row in filled), (
        "rows that were given, no others"
    )


def test_what_was_given_is_not_written_to() -> None:
    x = rows(5)
    in_batches(lambda part: part.mul_(0), 2)(x)
    assert torch.equal(x, rows(5))


def test_a_module_is_its_own_run_and_its_parameters_are_counted_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight  # shared
    original = of_module(module, (InputSpec("input", (3,)),))
    assert original.parameters == 9 + 3 + 3
    assert original.run is module
    assert original.title == PYTORCH
    assert original.outputs == ()
    assert TITLES[original.title] == "PyTorch"
