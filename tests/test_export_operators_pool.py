"""Poolings along one, two and three axes: right at every batch size and opset, in FP16 too, or refused."""

import contextlib
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from engineworks.export.emitter import CannotTranslate

PICTURE, SIGNAL, VOLUME = (2, 4, 7, 6), (2, 4, 9), (2, 4, 5, 6, 4)
RIGHT: dict[str, tuple[Any, tuple[int, ...]]] = {
    "the largest along one axis": (nn.MaxPool1d(3, 2, 1), SIGNAL),
    "the largest along three": (nn.MaxPool3d((1, 2, 3), 2, (0, 1, 1)), VOLUME),
    "means along one axis": (nn.AvgPool1d(3, 2, 1), SIGNAL),
    "means along three": (nn.AvgPool3d(2, ceil_mode=True), VOLUME),
    "means rounded up that do not count padding": (nn.AvgPool2d(3, 2, 1, True, False), (2, 4, 6, 8)),
    "means rounded up without padding": (nn.AvgPool2d(2, ceil_mode=True), PICTURE),
    "one mean along one axis": (nn.AdaptiveAvgPool1d(1), SIGNAL),
    "means to a third": (nn.AdaptiveAvgPool1d(3), SIGNAL),
    "one mean of a volume": (nn.AdaptiveAvgPool3d(1), VOLUME),
    "the largest of all": (nn.AdaptiveMaxPool2d(1), PICTURE),
    "the largest of halves": (nn.AdaptiveMaxPool2d((None, 3)), PICTURE),
    "the largest of a signal": (nn.AdaptiveMaxPool1d(1), SIGNAL),
    "functions": (lambda x: F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1) + F.adaptive_max_pool2d(x, 1), PICTURE),
    "functions along one axis": (
        lambda x: F.max_pool1d(x, 3) + F.avg_pool1d(x, 3) + F.adaptive_avg_pool1d(x, 3), SIGNAL,
    ),
    "minimum by the largest of the negative": (lambda x: -F.max_pool2d(-x, kernel_size=2, stride=1), PICTURE),
    "padding by minus infinity first": (
        lambda x: F.max_pool2d(F.pad(x, [0, 1, 0, 1], value=-float("inf")), 3, 2), PICTURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_it_is_right_about(what: str, translated: Any) -> None:
    net, shape = RIGHT[what]
    translated(nn.Sequential(net) if isinstance(net, nn.Module) else net, *shape)


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "a pool that returns places": (nn.MaxPool1d(2, return_indices=True), SIGNAL, "returns indices"),
    "an adaptive pool that returns places": (nn.AdaptiveMaxPool2d(1, return_indices=True), PICTURE, "returns indices"),
    "rounding up with padding that counts": (nn.AvgPool2d(3, 2, 1, True), (2, 4, 6, 8), "counts its padding"),
    "a divisor": (nn.AvgPool3d(2, divisor_override=3), VOLUME, "its own divisor"),
    "a signal without a batch": (nn.MaxPool1d(2), (4, 9), "2 axes where 3"),
    "thirds of a half": (nn.AdaptiveMaxPool2d(4), PICTURE, "does not divide"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused(what: str, refusal: Any) -> None:
    net, shape, why = REFUSED[what]
    assert re.search(why, refusal(nn.Sequential(net), *shape))


@settings(max_examples=30)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), padding=st.integers(0, 2), ceil=st.booleans(),
    size=st.integers(3, 10), counted=st.booleans(), dims=st.integers(1, 3),
)  # fmt: skip
def test_every_mean_is_right_or_refused(
    kernel: int, stride: int, padding: int, ceil: bool, size: int, counted: bool, dims: int, translated: Any
) -> None:
    kind = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1]
    pool = kind(kernel, stride, min(padding, kernel // 2), ceil, counted)
    shape = (2, 1, *([size] + [4] * (dims - 1)))
    try:
        pool(torch.zeros(shape))
    except RuntimeError:  # a window larger than the picture
        return
    with contextlib.suppress(CannotTranslate) if ceil and counted and padding else contextlib.nullcontext():
        translated(nn.Sequential(pool), *shape, sizes=(2,), half=False)
