"""Padding and resizing: right at every batch size and opset, in FP16 too, or refused."""

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from engineworks.export.emitter import CannotTranslate

PICTURE = (2, 3, 6, 8)
RIGHT: dict[str, tuple[Any, tuple[int, ...]]] = {
    "zeros about": (nn.ZeroPad2d((1, 0, 2, 3)), PICTURE),
    "a number about": (nn.ConstantPad2d(2, 0.5), PICTURE),
    "reflected": (nn.ReflectionPad2d((1, 2, 3, 0)), PICTURE),
    "repeated": (nn.ReplicationPad2d((1, 2, 3, 0)), PICTURE),
    "channels added": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), PICTURE),
    "nothing added": (lambda x: F.pad(x, (0, 0)) + 1, PICTURE),
    "a signal": (nn.ReflectionPad1d(2), (2, 3, 6)),
    "doubled": (nn.Upsample(scale_factor=2), PICTURE),
    "by one axis only": (nn.Upsample(scale_factor=(1, 3)), PICTURE),
    "to a size": (nn.Upsample(size=(12, 24)), PICTURE),
    "a signal doubled": (nn.Upsample(scale_factor=2), (2, 3, 6)),
    "halved": (lambda x: F.interpolate(x, scale_factor=0.5), (2, 3, 7, 8)),
    "linear": (nn.Upsample(scale_factor=2, mode="bilinear"), PICTURE),
    "linear with corners": (nn.UpsamplingBilinear2d(scale_factor=3), PICTURE),
    "linear to a size": (lambda x: F.interpolate(x, (5, 13), mode="bilinear"), PICTURE),
    "linear to a size with corners": (
        lambda x: F.interpolate(x, (5, 13), mode="bilinear", align_corners=True), PICTURE,
    ),
    "linear along one axis": (nn.Upsample(scale_factor=1.5, mode="linear"), (2, 3, 6)),
    "to the size of another": (
        lambda x: F.interpolate(x[..., ::2, ::2], size=x.shape[-2:], mode="nearest") + x, PICTURE,
    ),
    "to the size that is there": (lambda x: F.interpolate(x, x.shape[2:], mode="bilinear") * 2, PICTURE),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_it_is_right_about(what: str, translated: Any) -> None:
    net, shape = RIGHT[what]
    translated(nn.Sequential(net) if isinstance(net, nn.Module) else net, *shape)


REFUSED: dict[str, tuple[Any, str]] = {
    "padding round": (nn.CircularPad2d(1), "padding by circular"),
    "cropping": (lambda x: F.pad(x, (-1, 0)), "less than nothing"),
    "padding of the batch": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), "padding of the batch"),
    "the nearest of a size between": (lambda x: F.interpolate(x, (9, 12)), "other than a whole factor"),
    "the exact nearest": (
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), "resizing by nearest-exact",
    ),
    "cubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "resizing by bicubic"),
    "areas": (lambda x: F.interpolate(x, scale_factor=0.5, mode="area"), "resizing by area"),
    "a filter": (lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True), "a filter"),
    "one place with corners": (lambda x: F.interpolate(x, (1, 4), mode="bilinear", align_corners=True), "one place"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused(what: str, refusal: Any) -> None:
    net, why = REFUSED[what]
    assert re.search(why, refusal(nn.Sequential(net) if isinstance(net, nn.Module) else net, *PICTURE))


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)), to=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    mode=st.sampled_from(["nearest", "bilinear"]), corners=st.booleans(),
)  # fmt: skip
def test_any_size_is_right_or_refused(
    size: tuple[int, int], to: tuple[int, int], mode: str, corners: bool, translated: Any
) -> None:
    aligned = corners if mode == "bilinear" else None
    sure = mode == "bilinear" and not (corners and 1 in to)
    with contextlib.nullcontext() if sure else contextlib.suppress(CannotTranslate):
        translated(
            lambda x: F.interpolate(x, to, mode=mode, align_corners=aligned) + 0.5,
            2, 2, *size, sizes=(1, 3), half=False,
        )  # fmt: skip


@settings(max_examples=30)
@given(
    size=st.integers(2, 12), factor=st.floats(0.3, 4), mode=st.sampled_from(["nearest", "bilinear"]),
    again=st.booleans(),
)  # fmt: skip
def test_any_factor_is_right_or_refused(size: int, factor: float, mode: str, again: bool, translated: Any) -> None:
    if size * factor >= 1:
        with contextlib.suppress(CannotTranslate):
            translated(
                lambda x: F.interpolate(x, scale_factor=factor, mode=mode, recompute_scale_factor=again) + 0.5,
                2, 2, size, 5, sizes=(1, 3), half=False,
            )  # fmt: skip
