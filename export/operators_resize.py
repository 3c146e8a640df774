"""Rules of padding and resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engineworks.export.emitter import CannotTranslate, Emitter

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
_LINEAR = {"linear": 3, "bilinear": 4}  # and the axes of what each takes


def pad(e: Emitter, input: str, pad: Sequence[int], mode: str = "constant", value: Any = None) -> str:
    """Pad behind the batch axis; amounts come from the last axis on."""
    rank, amounts = len(e.shape(input)), list(pad)
    if mode not in _MODES or not all(isinstance(amount, int) and amount >= 0 for amount in amounts):
        raise CannotTranslate(f"padding by {mode}, or by less than nothing")
    if len(amounts) > 2 * (rank - 1):
        raise CannotTranslate("padding of the batch axis")
    if not any(amounts):
        return input
    if value is not None and not isinstance(value, (int, float)):
        raise CannotTranslate("padding with other than a number")
    begin, end = [0] * rank, [0] * rank
    for index in range(len(amounts) // 2):
        begin[rank - 1 - index], end[rank - 1 - index] = amounts[2 * index : 2 * index + 2]
    names = [input, e.integers("pads", [*begin, *end])]
    if mode == "constant":
        names.append(e.scalar("value", float(value or 0)))
    return e.emit("Pad", names, mode=_MODES[mode])


def interpolate(
    e: Emitter, input: str, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: Any = None, recompute_scale_factor: Any = None, antialias: bool = False,
) -> str:  # fmt: skip
    """Resize to the size that PyTorch found: nearest by whole factors, or linear."""
    before, after = e.shape(input)[2:], e.result[2:]
    if antialias or e.result[:2] != e.shape(input)[:2]:
        raise CannotTranslate("resizing with a filter against aliases")
    factors = _factors(size, scale_factor, recompute_scale_factor, before, after)
    if mode == "nearest":
        return _nearest(e, input, factors)
    if _LINEAR.get(mode) != len(e.shape(input)):
        raise CannotTranslate(f"resizing by {mode}")
    if before == after and (align_corners or factors == [1.0] * len(factors)):
        return input
    if align_corners and any(n == 1 < m for n, m in zip(after, before, strict=True)):
        raise CannotTranslate("resizing to one place with corners aligned")
    how = "align_corners" if align_corners else "half_pixel"
    return _resize(e, input, factors, mode="linear", coordinate_transformation_mode=how)


def _factors(
    size: Any, scale_factor: Any, recompute: Any, before: tuple[int, ...], after: tuple[int, ...]
) -> list[float]:
    """Return by what PyTorch divides a place in the result: the factor given, else the sizes' own."""
    if scale_factor is None or recompute:
        return [m / n for n, m in zip(before, after, strict=True)]
    given = [scale_factor] * len(before) if isinstance(scale_factor, (int, float)) else list(scale_factor)
    if not all(isinstance(factor, (int, float)) for factor in given):
        raise CannotTranslate("resizing by a factor that is no number")
    return [float(factor) for factor in given]


def _nearest(e: Emitter, input: str, factors: list[float]) -> str:
    before, after = e.shape(input)[2:], e.result[2:]
    whole = all(factor == int(factor) for factor in factors)
    if whole and after == tuple(int(f) * n for f, n in zip(factors, before, strict=True)):
        if all(factor == 1 for factor in factors):
            return input
        return _resize(
            e, input, factors, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
    steps = [round(1 / factor) for factor in factors]
    if any(abs(step * factor - 1) > 1e-9 or m != n // step for step, factor, n, m in zip(
        steps, factors, before, after, strict=True
    )):  # fmt: skip
        raise CannotTranslate("resizing to the nearest place by other than a whole factor")
    axes = list(range(2, 2 + len(steps)))
    lists = ([0] * len(axes), [m * step for m, step in zip(after, steps, strict=True)], axes, steps)
    names = ("starts", "ends", "axes", "steps")
    return e.emit("Slice", [input, *(e.integers(n, v) for n, v in zip(names, lists, strict=True))])


def _resize(e: Emitter, input: str, factors: list[float], **attributes: Any) -> str:
    """Resize by factors, each the nearest float32 with which ONNX rounds to the right size."""
    scales = [_exact(f, n, m) for f, n, m in zip(factors, e.shape(input)[2:], e.result[2:], strict=True)]
    name = e.weight(f"{e.current}/scales", np.array([1, 1, *scales], np.float32))
    return e.emit("Resize", [input, "", name], **attributes)


def _exact(factor: float, before: int, after: int) -> np.float32:
    scale = np.float32(factor)
    for candidate in (scale, np.nextafter(scale, np.float32(np.inf))):
        if int(np.floor(np.float32(before) * candidate)) == after == int(np.floor(before * float(candidate))):
            return candidate
    raise CannotTranslate(f"resizing {before} to {after} by a factor that float32 does not hold")
