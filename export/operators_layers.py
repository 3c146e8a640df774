"""Rules of the layers with weights: convolutions, linear layers, matrix products."""

import math
from typing import Any

from engineworks.export.emitter import CannotTranslate, Emitter
from engineworks.export.operands import Rule, check_rank, constants, reshaped, spread, tensor

_MODES = {"reflect": "reflect", "replicate": "edge"}


def conv(
    e: Emitter, input: str, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> str:  # fmt: skip
    """Conv; padding by name is spelled out, as PyTorch does it."""
    if isinstance(weight, str) or not isinstance(input, str):
        raise CannotTranslate("a convolution with a kernel that is computed from the input")
    dims = weight.dim() - 2
    check_rank(e, input, weight.dim())
    kernel, dilations = list(weight.shape[2:]), spread(dilation, dims)
    names = [input, tensor(e, weight, "weight"), *_bias(e, bias)]
    return e.emit(
        "Conv", names, kernel_shape=kernel, strides=spread(stride, dims), pads=_pads(padding, kernel, dilations),
        dilations=dilations, group=groups,
    )  # fmt: skip


def _pads(padding: Any, kernel: list[int], dilations: list[int]) -> list[int]:
    """Return the padding at the beginning and the end of each axis; of an odd amount the end takes more."""
    if padding == "valid":
        return [0, 0] * len(kernel)
    if padding == "same":
        total = [step * (size - 1) for size, step in zip(kernel, dilations, strict=True)]
        return [*(amount // 2 for amount in total), *(amount - amount // 2 for amount in total)]
    if isinstance(padding, str):
        raise CannotTranslate(f"a convolution with the padding {padding}")
    return spread(padding, len(kernel)) * 2


def conv_module(e: Emitter, input: str, m: Any) -> str:
    """A convolution's module, whose edge may be padded with what lies beside it."""
    if m.padding_mode == "zeros":
        return conv(e, input, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    if m.padding_mode not in _MODES:
        raise CannotTranslate(f"a convolution padded with {m.padding_mode}")
    check_rank(e, input, m.weight.dim())
    kernel = list(m.weight.shape[2:])
    pads = _pads(m.padding, kernel, spread(m.dilation, len(kernel)))
    begin, end = pads[: len(kernel)], pads[len(kernel) :]
    size = [*e.shape(input)[:2], *(n + a + b for n, a, b in zip(e.shape(input)[2:], begin, end, strict=True))]
    amounts = e.integers("pads", [0, 0, *begin, 0, 0, *end])
    padded = e.step("padded", "Pad", [input, amounts], tuple(size), mode=_MODES[m.padding_mode])
    return conv(e, padded, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def conv_transpose(  # noqa: PLR0913, PLR0917 - PyTorch's own arguments
    e: Emitter, input: str, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> str:  # fmt: skip
    """ConvTranspose."""
    if isinstance(weight, str) or not isinstance(input, str):
        raise CannotTranslate("a convolution with a kernel that is computed from the input")
    dims = weight.dim() - 2
    check_rank(e, input, weight.dim())
    if any(more >= step for more, step in zip(spread(output_padding, dims), spread(stride, dims), strict=True)):
        raise CannotTranslate("an output padding that ONNX Runtime refuses: as large as the stride")
    names = [input, tensor(e, weight, "weight"), *_bias(e, bias)]
    return e.emit(
        "ConvTranspose", names, kernel_shape=list(weight.shape[2:]), strides=spread(stride, dims),
        pads=spread(padding, dims) * 2, output_padding=spread(output_padding, dims),
        dilations=spread(dilation, dims), group=groups,
    )  # fmt: skip


def conv_transpose_module(e: Emitter, input: str, m: Any) -> str:
    """A transposed convolution's module."""
    if m.padding_mode != "zeros":
        raise CannotTranslate(f"a convolution padded with {m.padding_mode}")
    return conv_transpose(e, input, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


def linear(e: Emitter, input: str, weight: Any, bias: Any = None) -> str:
    """Gemm for a matrix; MatMul and Add where there are axes between."""
    if isinstance(weight, str) or weight.dim() != 2 or len(e.shape(input)) < 2:
        raise CannotTranslate("a linear layer on a vector, or with a weight that is computed or no matrix")
    if len(e.shape(input)) == 2:
        return e.emit("Gemm", [input, tensor(e, weight, "weight"), *_bias(e, bias)], transB=1)
    factors = [input, tensor(e, weight.t(), "weight")]
    if bias is None:
        return e.emit("MatMul", factors)
    return e.emit("Add", [e.step("product", "MatMul", factors, e.result), *_bias(e, bias)])


def _bias(e: Emitter, bias: Any) -> list[str]:
    return [] if bias is None else constants(e, bias=bias)


def matmul(e: Emitter, input: Any, other: Any) -> str:
    """MatMul in which the batch is no axis that is summed over or paired with another."""
    ranks = [len(e.shape(v)) if isinstance(v, str) else v.dim() for v in (input, other)]
    if min(ranks) < 2:
        raise CannotTranslate("a matrix product with a vector")
    left, right = isinstance(input, str), isinstance(other, str)
    if left and right and (ranks[0] != ranks[1] or ranks[0] < 3):
        raise CannotTranslate("a matrix product of two values whose batches do not meet")
    if right and ranks[1] < 3:
        raise CannotTranslate("a matrix product that sums over the batch")
    for value, rank in zip((input, other), ranks, strict=True):
        if not isinstance(value, str) and rank >= max(ranks) and rank > 2 and value.shape[0] != 1:
            raise CannotTranslate("a constant with an axis of its own along the batch")
        if not isinstance(value, str) and rank > max(ranks[0] if left else 0, ranks[1] if right else 0):
            raise CannotTranslate("a constant of more axes than the value")
    return e.emit("MatMul", [tensor(e, input, "left"), tensor(e, other, "right")])


def attention(
    e: Emitter, query: str, key: str, value: str, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> str:  # fmt: skip
    """Softmax(QKᵀ/√d)V, spelled out; no mask."""
    if attn_mask is not None or dropout_p or is_causal:
        raise CannotTranslate("attention with a mask or dropout")
    shapes = [e.shape(operand) for operand in (query, key, value)]
    if len({shape[:-2] for shape in shapes}) != 1 or len(shapes[0]) < 3:
        raise CannotTranslate("attention between values of different shape")
    order = [*range(len(shapes[0]) - 2), len(shapes[0]) - 1, len(shapes[0]) - 2]
    factor = e.scalar("scale", shapes[0][-1] ** -0.5 if scale is None else scale)
    scaled = e.step("scaled", "Mul", [query, factor])
    turned = e.step("turned", "Transpose", [key], tuple(shapes[1][axis] for axis in order), perm=order)
    scores = e.step("scores", "MatMul", [scaled, turned], (*shapes[0][:-1], shapes[1][-2]))
    return e.emit("MatMul", [e.step("weights", "Softmax", [scores], axis=len(order) - 1), value])


def unfolded(factor_of: str) -> Rule:
    """PixelShuffle (DepthToSpace) or its inverse, by the factor."""

    def rule(e: Emitter, input: str, factor: int) -> str:
        check_rank(e, input, 4)
        if factor == 1:
            return input
        if factor_of == "up":
            return e.emit("DepthToSpace", [input], blocksize=factor, mode="CRD")
        # SpaceToDepth puts the window's axes before the channels, PyTorch behind them
        rows, channels, height, width = e.shape(input)
        apart = (rows, channels, height // factor, factor, width // factor, factor)
        split = e.step("split", "Reshape", [input, e.integers("apart", [0, *apart[1:]])], apart)
        order = [0, 1, 3, 5, 2, 4]
        turned = e.step("turned", "Transpose", [split], tuple(apart[axis] for axis in order), perm=order)
        return reshaped(e, turned)

    return rule


def channel_shuffle(e: Emitter, input: str, groups: int) -> str:
    """Two reshapes about a transposition."""
    rows, channels, *space = e.shape(input)
    if channels % groups or math.prod(space) == 0:
        raise CannotTranslate("a channel shuffle whose groups do not divide the channels")
    apart = (rows, groups, channels // groups, *space)
    split = e.step("split", "Reshape", [input, e.integers("apart", [0, *apart[1:]])], apart)
    order = [0, 2, 1, *range(3, len(apart))]
    turned = e.step("turned", "Transpose", [split], tuple(apart[axis] for axis in order), perm=order)
    return e.emit("Reshape", [turned, e.integers("shape", [0, *e.result[1:]])])
