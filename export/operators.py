"""What our own translation knows: one short function for each PyTorch operator, ONNX on its other side.

A function gets the emitter and the operator's own arguments, under PyTorch's names: a value's ONNX name where PyTorch
has a tensor that depends on the input, a torch tensor where it is constant. It raises ``CannotTranslate`` for every
argument that it was not written for; unknown arguments are a TypeError, which counts as the same.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engineworks.export.emitter import CannotTranslate, Emitter

if TYPE_CHECKING:
    import torch

Rule = Callable[..., Any]


class BatchSize:
    """Stands for ``x.shape[0]`` in what the traced module computes."""


BATCH = BatchSize()


def pair(value: int | Sequence[int], dims: int = 2) -> list[int]:
    """Spell a size out for each spatial axis; PyTorch takes one number, bare or in a list, for all of them."""
    sizes = [value] if isinstance(value, int) else list(value)
    sizes = sizes * dims if len(sizes) == 1 else sizes
    if len(sizes) != dims or not all(isinstance(size, int) for size in sizes):
        raise CannotTranslate(f"the size {value} for {dims} axes")
    return sizes


def tensor(e: Emitter, value: Any, suffix: str) -> str:
    """Return the ONNX name of a value: of the graph, of a stored constant, or of a number stored here."""
    import torch

    if isinstance(value, str):
        return value
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return e.weight(f"{e.current}/{suffix}", value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return e.scalar(suffix, float(value))
    kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
    raise CannotTranslate("the batch size as a number" if value is BATCH else f"an operand of type {kind}")


def conv(
    e: Emitter, input: str, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> str:  # fmt: skip
    """Conv; ``padding`` in numbers."""
    if isinstance(padding, str) or isinstance(weight, str) or not isinstance(input, str):
        raise CannotTranslate("a convolution with padding by name, or with a kernel that is computed from the input")
    dims = weight.dim() - 2
    _check_rank(e, input, weight.dim())
    pads = pair(padding, dims)
    names = [input, tensor(e, weight, "weight"), *_bias(e, bias)]
    return e.emit(
        "Conv", names, kernel_shape=list(weight.shape[2:]), strides=pair(stride, dims), pads=[*pads, *pads],
        dilations=pair(dilation, dims), group=groups,
    )  # fmt: skip


def linear(e: Emitter, input: str, weight: Any, bias: Any = None) -> str:
    """Gemm, for a matrix."""
    if isinstance(weight, str) or weight.dim() != 2 or len(e.shape(input)) != 2:
        raise CannotTranslate("a linear layer on other than (N, C), or with a weight that is computed or no matrix")
    return e.emit("Gemm", [input, tensor(e, weight, "weight"), *_bias(e, bias)], transB=1)


def _bias(e: Emitter, bias: Any) -> list[str]:
    """Store the bias, if there is one: a number for each channel, never for each row."""
    if bias is None:
        return []
    if isinstance(bias, str) or bias.dim() != 1:
        raise CannotTranslate("a bias that is computed from the input, or no vector")
    return [tensor(e, bias, "bias")]


def _check_rank(e: Emitter, name: str, rank: int) -> None:
    """Refuse pictures without a batch: PyTorch takes them, and their first axis for the channels."""
    if len(e.shape(name)) != rank:
        raise CannotTranslate(f"a convolution, pooling or norm of {len(e.shape(name))} axes where {rank} hold a batch")


def batch_norm(e: Emitter, input: str, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> str:
    """BatchNormalization with stored statistics."""
    _check_rank(e, input, 4)
    names = [
        tensor(e, value, suffix) for value, suffix in ((weight, "weight"), (bias, "bias"), (mean, "mean"), (var, "var"))
    ]
    return e.emit("BatchNormalization", [input, *names], epsilon=float(eps))


def max_pool(
    e: Emitter, input: str, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> str:  # fmt: skip
    """MaxPool; a size rounded up is written as padding at the end, for shape inference counts ceil_mode otherwise."""
    if return_indices:
        raise CannotTranslate("max pooling that returns indices")
    _check_rank(e, input, 4)
    kernel, begin, spread = pair(kernel_size), pair(padding), pair(dilation)
    strides = pair(kernel_size if stride is None else stride)
    span = [d * (k - 1) + 1 for k, d in zip(kernel, spread, strict=True)]
    end = _end_padding(e, input, span, strides, begin)
    if any(pad >= size for pad, size in zip(end, kernel, strict=True)):
        raise CannotTranslate("dilated pooling whose size is rounded up by more than ONNX Runtime lets it be padded")
    return e.emit("MaxPool", [input], kernel_shape=kernel, strides=strides, pads=[*begin, *end], dilations=spread)


def _end_padding(e: Emitter, input: str, span: list[int], strides: list[int], begin: list[int]) -> list[int]:
    """Return the padding at the end with which rounding down gives the size that PyTorch found."""
    sizes = zip(e.shape(input)[2:], e.result[2:], span, strides, begin, strict=True)
    return [max(pad, (out - 1) * step + window - size - pad) for size, out, window, step, pad in sizes]


def avg_pool(
    e: Emitter, input: str, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: Any = None,
) -> str:  # fmt: skip
    """AveragePool, where rounding up adds nothing."""
    _check_rank(e, input, 4)
    kernel, begin = pair(kernel_size), pair(padding)
    strides = pair(kernel_size if stride is None else stride)
    if divisor_override is not None or _end_padding(e, input, kernel, strides, begin) != begin:
        raise CannotTranslate("average pooling whose size is rounded up, or with a divisor of its own")
    return e.emit(
        "AveragePool", [input], kernel_shape=kernel, strides=strides, pads=[*begin, *begin],
        count_include_pad=int(count_include_pad),
    )  # fmt: skip


def adaptive_avg_pool(e: Emitter, input: str, output_size: Any) -> str:
    """GlobalAveragePool, AveragePool, or nothing where the size is there already."""
    _check_rank(e, input, 4)
    before, after = e.shape(input)[2:], e.result[2:]
    if before == after:
        return input
    if all(size == 1 for size in after):
        return e.emit("GlobalAveragePool", [input])
    if any(size % out for size, out in zip(before, after, strict=True)):
        raise CannotTranslate("adaptive pooling to a size that does not divide the input's")
    kernel = [size // out for size, out in zip(before, after, strict=True)]
    return e.emit("AveragePool", [input], kernel_shape=kernel, strides=kernel)


def local_response_norm(
    e: Emitter, input: str, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> str:
    """LRN: one node; ONNX centres an even window elsewhere, and ONNX Runtime knows pictures only."""
    if size % 2 == 0 or len(e.shape(input)) != 4:
        raise CannotTranslate("local response norm over an even number of channels, or on other than (N, C, H, W)")
    return e.emit("LRN", [input], size=size, alpha=float(alpha), beta=float(beta), bias=float(k))


def dropout(e: Emitter, input: str, p: float = 0.5, training: bool = True, inplace: bool = False) -> str:
    """Nothing, outside training."""
    if training:
        raise CannotTranslate("dropout in training")
    return input


def same(e: Emitter, input: str, *_: Any) -> str:
    """Nothing."""
    return input


def unary(operator_name: str, **attributes: Any) -> Rule:
    """One ONNX operator with one input; ``inplace`` is the tracer's affair."""

    def rule(e: Emitter, input: str, inplace: bool = False) -> str:
        return e.emit(operator_name, [input], **attributes)

    return rule


def clip(e: Emitter, input: str, min_val: float, max_val: float, inplace: bool = False) -> str:
    """Clip between two numbers."""
    return e.emit("Clip", [input, e.scalar("min", min_val), e.scalar("max", max_val)])


def leaky_relu(e: Emitter, input: str, negative_slope: float = 0.01, inplace: bool = False) -> str:
    """LeakyRelu."""
    return e.emit("LeakyRelu", [input], alpha=float(negative_slope))


def softmax(e: Emitter, input: str, dim: int | None = None, *, _stacklevel: int = 3, dtype: Any = None) -> str:
    """Softmax along an axis that is not the batch."""
    if dim is None or dtype is not None:
        raise CannotTranslate("softmax without an axis, or with a dtype")
    return e.emit("Softmax", [input], axis=_axis(e, input, dim))


def binary(operator_name: str) -> Rule:
    """One ONNX operator with two inputs, either of which may be a constant or a number."""

    def rule(e: Emitter, input: Any, other: Any, *, alpha: float = 1) -> str:
        if alpha != 1:
            raise CannotTranslate("add or sub with alpha")
        names = [tensor(e, input, "left"), tensor(e, other, "right")]
        _check_broadcast(e, input, other)
        return e.emit(operator_name, names)

    return rule


def _check_broadcast(e: Emitter, *operands: Any) -> None:
    """Refuse operands whose axes, lined up from the last, put something else than a one beside the batch."""
    import torch

    rank = len(e.result)
    for operand in operands:
        if isinstance(operand, str) and len(e.shape(operand)) != rank:
            raise CannotTranslate("two values of different rank, where the batch of one meets another axis")
        if isinstance(operand, torch.Tensor) and operand.dim() == rank and operand.shape[0] != 1:
            raise CannotTranslate("a constant with an axis of its own along the batch")


def cat(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> str:
    """Concat along an axis that is not the batch, of values that all have one."""
    if not all(isinstance(value, str) for value in tensors):
        raise CannotTranslate("a constant joined to a value, with a fixed batch")
    return e.emit("Concat", list(tensors), axis=_axis(e, tensors[0], dim))


def flatten(e: Emitter, input: str, start_dim: int = 0, end_dim: int = -1) -> str:
    """Reshape to [0, …]: TensorRT makes ten layers of Flatten."""
    return _reshape(e, input, start=_axis(e, input, start_dim))


def reshape(e: Emitter, input: str, *shape: Any) -> str:
    """Reshape whose first size is the batch's own, or left open and then equal to it."""
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else list(shape)
    if sizes[0] is not BATCH and sizes[0] != -1:
        raise CannotTranslate("a view with a fixed batch size")
    if e.result[0] != e.rows or any(size is BATCH for size in sizes[1:]):
        raise CannotTranslate("a view that moves the batch to another axis")
    if sizes[0] == -1 and math.prod(e.result[1:]) != math.prod(e.shape(input)[1:]):
        raise CannotTranslate("a view that mixes rows")
    return _reshape(e, input, start=1)


def _reshape(e: Emitter, input: str, start: int) -> str:
    if start < 1 or e.result[0] != e.rows:
        raise CannotTranslate("a flattened batch axis")
    return e.emit("Reshape", [input, e.integers("shape", [0, *e.result[1:]])])


def reduce(operator_name: str) -> Rule:
    """ReduceMean or ReduceSum over axes that are not the batch."""

    def rule(e: Emitter, input: str, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> str:
        if dim is None or dtype is not None:
            raise CannotTranslate("a sum or mean over everything")
        axes = [_axis(e, input, axis) for axis in ([dim] if isinstance(dim, int) else dim)]
        if not axes:
            raise CannotTranslate("a sum or mean over everything")
        return e.emit(operator_name, [input, e.integers("axes", axes)], keepdims=int(keepdim))

    return rule


def unsqueeze(e: Emitter, input: str, dim: int) -> str:
    """Unsqueeze behind the batch axis."""
    axis = dim if dim >= 0 else dim + len(e.shape(input)) + 1
    if axis < 1:
        raise CannotTranslate("an axis put before the batch")
    return e.emit("Unsqueeze", [input, e.integers("axes", [axis])])


def permute(e: Emitter, input: str, *dims: Any) -> str:
    """Transpose that leaves the batch axis first."""
    order = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else list(dims)
    order = [axis % len(order) for axis in order]
    if order[0] != 0:
        raise CannotTranslate("a permutation that moves the batch axis")
    return e.emit("Transpose", [input], perm=order)


def size(e: Emitter, input: str, dim: int | None = None) -> Any:
    """Return the shape, or one size of it, with the batch left open."""
    shape = (BATCH, *e.shape(input)[1:])
    return shape if dim is None else shape[dim]


def attribute(e: Emitter, input: Any, name: str) -> Any:
    """Return ``x.shape``; no other attribute is known."""
    if name != "shape" or not isinstance(input, str):
        raise CannotTranslate(f"the attribute {name}")
    return size(e, input)


def item(e: Emitter, input: Any, index: Any) -> Any:
    """Return one size of a shape; tensors are not indexed."""
    if not isinstance(input, tuple):
        raise CannotTranslate("indexing into a tensor")
    return input[index]


def _axis(e: Emitter, name: str, dim: int) -> int:
    axis = dim % len(e.shape(name))
    if axis == 0:
        raise CannotTranslate("an operation along the batch axis")
    return axis


def module_rules() -> "dict[type[torch.nn.Module], Callable[[Any], tuple[Rule, tuple[Any, ...]]]]":
    """Return for each exact module type how its rule and the arguments behind the input are read off the module."""
    from torch import nn

    pool = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    average = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return {
        nn.Conv1d: _conv_arguments,
        nn.Conv2d: _conv_arguments,
        nn.Conv3d: _conv_arguments,
        nn.Linear: lambda m: (linear, (m.weight, m.bias)),
        nn.BatchNorm2d: _batch_norm_arguments,
        nn.ReLU: lambda m: (unary("Relu"), ()),
        nn.ReLU6: lambda m: (clip, (0.0, 6.0)),
        nn.Hardtanh: lambda m: (clip, (m.min_val, m.max_val)),
        nn.LeakyReLU: lambda m: (leaky_relu, (m.negative_slope,)),
        nn.Tanh: lambda m: (unary("Tanh"), ()),
        nn.Sigmoid: lambda m: (unary("Sigmoid"), ()),
        nn.Softmax: lambda m: (softmax, (m.dim,)),
        nn.MaxPool2d: lambda m: (max_pool, tuple(getattr(m, name) for name in pool)),
        nn.AvgPool2d: lambda m: (avg_pool, tuple(getattr(m, name) for name in average)),
        nn.AdaptiveAvgPool2d: lambda m: (adaptive_avg_pool, (m.output_size,)),
        nn.LocalResponseNorm: lambda m: (local_response_norm, (m.size, m.alpha, m.beta, m.k)),
        nn.Flatten: lambda m: (flatten, (m.start_dim, m.end_dim)),
        nn.Dropout: lambda m: (dropout, (m.p, m.training)),
        nn.Dropout2d: lambda m: (dropout, (m.p, m.training)),
        nn.Identity: lambda m: (same, ()),
    }


def _conv_arguments(m: Any) -> tuple[Rule, tuple[Any, ...]]:
    if m.padding_mode != "zeros":
        raise CannotTranslate(f"a convolution padded with {m.padding_mode}")
    return conv, (m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _batch_norm_arguments(m: Any) -> tuple[Rule, tuple[Any, ...]]:
    if m.running_var is None or m.weight is None:
        raise CannotTranslate("batch norm without stored statistics or weights")
    return batch_norm, (m.running_mean, m.running_var, m.weight, m.bias, m.eps)


def function_rules() -> dict[Any, Rule]:
    """Return the rule of each function, by the function; of each tensor method, by its name."""
    import torch
    from torch.nn import functional as F

    add, sub, mul, div = (binary(name) for name in ("Add", "Sub", "Mul", "Div"))
    mean, total, relu = reduce("ReduceMean"), reduce("ReduceSum"), unary("Relu")
    tanh, sigmoid = unary("Tanh"), unary("Sigmoid")
    return {
        **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), add),
        **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), sub),
        **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), mul),
        **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), div),
        **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), relu),
        **dict.fromkeys((torch.tanh, F.tanh, "tanh"), tanh),
        **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), sigmoid),
        **dict.fromkeys((torch.flatten, "flatten"), flatten),
        **dict.fromkeys((torch.reshape, "reshape", "view"), reshape),
        **dict.fromkeys((torch.mean, "mean"), mean),
        **dict.fromkeys((torch.sum, "sum"), total),
        **dict.fromkeys((torch.unsqueeze, "unsqueeze"), unsqueeze),
        **dict.fromkeys((torch.permute, "permute"), permute),
        **dict.fromkeys((torch.cat, torch.concat), cat),
        **dict.fromkeys((torch.softmax, F.softmax, "softmax"), softmax),
        **dict.fromkeys((F.dropout,), dropout),
        **dict.fromkeys((F.conv2d, torch.conv2d), conv),
        F.linear: linear,
        F.leaky_relu: leaky_relu,
        F.max_pool2d: max_pool,
        F.avg_pool2d: avg_pool,
        F.adaptive_avg_pool2d: adaptive_avg_pool,
        F.local_response_norm: local_response_norm,
        "contiguous": same,
        "size": size,
        getattr: attribute,
        operator.getitem: item,
    }
