"""What a forward takes out of its tensors is noted, with the line that does; what it may take is not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.nn import functional

from engineworks.export.watch import watched
from engineworks.runtime.errors import ExportError

X = {"x": np.ones((3, 4, 5), np.float32)}
SCALES = {3: 2.0}


def reads(run: Callable[[Tensor], Any]) -> list[str]:
    found: list[str] = []
    watched(run, X, found)
    return found


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x * SCALES.get(x.shape[0], 1.0),
        lambda x: x * SCALES.get(x.size(0), 1.0),
        lambda x: x * (str(x.shape[0]) == "3"),
        lambda x: x * len(f"{x.tanh().shape[0]}"),
        lambda x: x * (x.shape in {x.shape}),
    ],
)
def test_the_batch_size_as_a_word_or_a_key_is_noted(run: Callable[[Tensor], Any]) -> None:
    found = reads(run)
    assert (
        found and found[0].startswith("the batch size as a word or a key") and " At test_export_watch.py:" in found[0]
    )


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.reshape(x.shape[0], -1) / x.shape[0],
        lambda x: x * SCALES.get(x.shape[1], 1.0),
        lambda x: x if x.size(0) > 2 else -x,
        lambda x: functional.interpolate(x, x.shape[2] * 2),
        lambda x: x.view(x.size()).expand(x.shape),
    ],
)
def test_sizes_as_numbers_are_not(run: Callable[[Tensor], Any]) -> None:
    assert reads(run) == []


def test_values_are_noted_where_they_are_read() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x.tanh()
        return y * 2 if y.sum() > 0 else y

    [found] = reads(forward)
    assert found.startswith("values of the data") and found.endswith("in forward: return y * 2 if y.sum() > 0 else y")


def test_what_the_forward_raises_is_raised_with_its_line() -> None:
    def forward(x: Tensor) -> Tensor:
        return x.reshape(7)

    with pytest.raises(
        ExportError, match=r"raises RuntimeError at a batch of 3: shape .*\. At .*return x\.reshape\(7\)"
    ):
        reads(forward)
