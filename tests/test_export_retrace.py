"""Two runs of one forward, line by line: the line at which they part."""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engineworks.export.retrace import first_change, last_return, why_rows_differ

X = {"x": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)}
COUNT = itertools.count(1)


def drawn(x: Tensor) -> Tensor:
    y = x * 2
    y = y + torch.rand(1)
    return y.tanh()


def counted(x: Tensor) -> Tensor:
    return x * next(COUNT)


def mixed(x: Tensor) -> Tensor:
    y = x.tanh()
    y = y - y.mean(0)
    return y * 3


def inside(x: Tensor) -> Tensor:
    return mixed(x) + 1


def branched(x: Tensor) -> Tensor:
    y = x.tanh()
    if len(x) > 2:
        y = y * 2
    return y


def running(x: Tensor) -> Tensor:
    return x.cumsum(0)


def apart(x: Tensor) -> Tensor:
    return (x * 2).softmax(1)


@pytest.mark.parametrize(
    ("run", "reason", "line"),
    [
        (drawn, "from call to call", "y = y + torch.rand(1)"),
        (counted, "from call to call", "return x * next(COUNT)"),
        (mixed, "whole batch", "y = y - y.mean(0)"),
        (inside, "whole batch", "y = y - y.mean(0)"),
        (branched, "whole batch", "if len(x) > 2:"),
        (running, "whole batch", "return x.cumsum(0)"),
    ],
)
def test_the_line_at_which_answers_part_is_named(run: Callable[..., Any], reason: str, line: str) -> None:
    said = why_rows_differ(run, X)
    assert said is not None and reason in said and said.endswith(f": {line}")


def test_rows_that_stand_alone_are_not_accused() -> None:
    assert why_rows_differ(apart, X) is None


def test_the_tracer_before_is_put_back_and_the_users_errors_stay_inside() -> None:
    def raising(x: Tensor) -> Tensor:
        raise ValueError

    before = sys.gettrace()
    assert why_rows_differ(raising, X) is None
    assert sys.gettrace() is before


def test_the_line_that_changes_something_is_named() -> None:
    seen: list[int] = []

    def kept(x: Tensor) -> Tensor:
        y = x + 1
        seen.append(1)
        return y

    line = first_change(kept, X, lambda: len(seen))
    assert line is not None and line.endswith("in kept: seen.append(1)")
    assert first_change(apart, X, lambda: len(seen)) is None


def test_the_line_at_which_a_run_ends_is_named() -> None:
    line = last_return(inside, X)
    assert line is not None and line.endswith("in inside: return mixed(x) + 1")
