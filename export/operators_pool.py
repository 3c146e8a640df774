"""Rules of the poolings, along one, two or three axes."""

from typing import Any

from engineworks.export.emitter import CannotTranslate, Emitter
from engineworks.export.operands import Rule, check_rank, spread


def max_pool(dims: int) -> Rule:
    """MaxPool; a size rounded up is written as padding at the end, for shape inference counts ceil_mode otherwise."""

    def rule(
        e: Emitter, input: str, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> str:  # fmt: skip
        if return_indices:
            raise CannotTranslate("max pooling that returns indices")
        check_rank(e, input, dims + 2)
        kernel, begin, steps = spread(kernel_size, dims), spread(padding, dims), spread(dilation, dims)
        strides = spread(stride or kernel_size, dims)
        span = [d * (k - 1) + 1 for k, d in zip(kernel, steps, strict=True)]
        end = _end_padding(e, input, span, strides, begin)
        if any(pad >= size for pad, size in zip(end, kernel, strict=True)):
            raise CannotTranslate(
                "dilated pooling whose size is rounded up by more than ONNX Runtime lets it be padded"
            )
        return e.emit("MaxPool", [input], kernel_shape=kernel, strides=strides, pads=[*begin, *end], dilations=steps)

    return rule


def _end_padding(e: Emitter, input: str, span: list[int], strides: list[int], begin: list[int]) -> list[int]:
    """Return the padding at the end with which rounding down gives the size that PyTorch found."""
    sizes = zip(e.shape(input)[2:], e.result[2:], span, strides, begin, strict=True)
    return [max(pad, (out - 1) * step + window - size - pad) for size, out, window, step, pad in sizes]


def avg_pool(dims: int) -> Rule:
    """AveragePool; a size rounded up is padding at the end that does not count."""

    def rule(
        e: Emitter, input: str, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: Any = None,
    ) -> str:  # fmt: skip
        check_rank(e, input, dims + 2)
        kernel, begin = spread(kernel_size, dims), spread(padding, dims)
        strides = spread(stride or kernel_size, dims)
        end = _end_padding(e, input, kernel, strides, begin)
        counted = count_include_pad and any(begin)
        if divisor_override is not None or (counted and end != begin):
            raise CannotTranslate("average pooling that counts its padding and is rounded up, or with its own divisor")
        return e.emit(
            "AveragePool", [input], kernel_shape=kernel, strides=strides, pads=[*begin, *end],
            count_include_pad=int(count_include_pad and end == begin),
        )  # fmt: skip

    return rule


def adaptive_pool(dims: int, kind: str) -> Rule:
    """GlobalAveragePool or GlobalMaxPool, a pool of equal windows, or nothing where the size is there already."""

    def rule(e: Emitter, input: str, output_size: Any, return_indices: bool = False) -> str:
        if return_indices:
            raise CannotTranslate("max pooling that returns indices")
        check_rank(e, input, dims + 2)
        before, after = e.shape(input)[2:], e.result[2:]
        if before == after:
            return input
        if all(size == 1 for size in after):
            return e.emit(f"Global{kind}", [input])
        if any(size % out for size, out in zip(before, after, strict=True)):
            raise CannotTranslate("adaptive pooling to a size that does not divide the input's")
        kernel = [size // out for size, out in zip(before, after, strict=True)]
        return e.emit(kind, [input], kernel_shape=kernel, strides=kernel, pads=[0] * (2 * dims))

    return rule
