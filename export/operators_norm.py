"""Rules of the normalisations, with the statistics that a module holds or with those of each row."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engineworks.export.emitter import CannotTranslate, Emitter
from engineworks.export.operands import axis_of, check_rank, constants, tensor


def batch_norm_module(e: Emitter, input: str, m: Any, dims: tuple[int, ...]) -> str:
    """A batch norm's module; ``dims`` are the axes that its kind takes."""
    if len(e.shape(input)) not in dims:
        check_rank(e, input, dims[-1])
    return batch_norm(e, input, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)


def batch_norm(  # noqa: PLR0913, PLR0917 - PyTorch's own arguments
    e: Emitter, input: str, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> str:  # fmt: skip
    """BatchNormalization with stored statistics."""
    if running_mean is None or running_var is None or training:
        raise CannotTranslate("batch norm without stored statistics")
    if len(e.shape(input)) < 2:
        raise CannotTranslate("batch norm without channels")
    gain, shift = _affine(running_mean, weight, bias)
    names = constants(e, weight=gain, bias=shift, mean=running_mean, var=running_var)
    return e.emit("BatchNormalization", [input, *names], epsilon=float(eps))


def _affine(like: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    import torch

    return torch.ones_like(like) if weight is None else weight, torch.zeros_like(like) if bias is None else bias


def layer_norm(
    e: Emitter, input: str, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> str:
    """LayerNormalization over the last axes."""
    import torch

    if len(normalized_shape) >= len(e.shape(input)):
        raise CannotTranslate("layer norm over the batch")
    gain = torch.ones(*normalized_shape) if weight is None else weight
    if isinstance(gain, str) or isinstance(bias, str):
        raise CannotTranslate("layer norm with weights that are computed from the input")
    names = [input, tensor(e, gain, "weight"), *([] if bias is None else [tensor(e, bias, "bias")])]
    return e.emit("LayerNormalization", names, axis=-len(normalized_shape), epsilon=float(eps))


def group_norm(e: Emitter, input: str, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> str:
    """InstanceNormalization of each group as one channel, then the weights of the true channels."""
    rows, channels, *space = e.shape(input)
    flat = (rows, num_groups, channels // num_groups * math.prod(space))
    grouped = e.step("grouped", "Reshape", [input, e.integers("groups", [0, num_groups, -1])], flat)
    plain = [e.weight(f"{e.current}/{name}", np.full(num_groups, value, np.float32))
             for name, value in (("one", 1), ("zero", 0))]  # fmt: skip
    normed = e.step("normed", "InstanceNormalization", [grouped, *plain], epsilon=float(eps))
    shape = e.integers("shape", [0, *e.shape(input)[1:]])
    if weight is None and bias is None:
        return e.emit("Reshape", [normed, shape])
    back = e.step("back", "Reshape", [normed, shape], e.shape(input))
    if any(part is None or isinstance(part, str) or part.dim() != 1 for part in (weight, bias)):
        raise CannotTranslate("group norm with one of weight and bias, or with one that is computed")
    axes = (-1, *(1 for _ in space))
    scaled = e.step("scaled", "Mul", [back, tensor(e, weight.reshape(axes), "weight")])
    return e.emit("Add", [scaled, tensor(e, bias.reshape(axes), "bias")])


def group_norm_module(e: Emitter, input: str, m: Any) -> str:
    """A group norm's module."""
    return group_norm(e, input, m.num_groups, m.weight, m.bias, m.eps)


def instance_norm(  # noqa: PLR0913, PLR0917 - PyTorch's own arguments
    e: Emitter, input: str, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> str:  # fmt: skip
    """InstanceNormalization, or batch norm where a module keeps its statistics."""
    import torch

    if not use_input_stats:
        return batch_norm(e, input, running_mean, running_var, weight, bias, False, momentum, eps)
    if len(e.shape(input)) < 3:
        raise CannotTranslate("instance norm without a picture")
    gain, shift = _affine(torch.zeros(e.shape(input)[1]), weight, bias)
    return e.emit("InstanceNormalization", [input, *constants(e, weight=gain, bias=shift)], epsilon=float(eps))


def instance_norm_module(e: Emitter, input: str, m: Any, rank: int) -> str:
    """An instance norm's module, which takes statistics of its own only if it was told to keep them."""
    check_rank(e, input, rank)
    own = m.running_mean is None
    return instance_norm(e, input, m.running_mean, m.running_var, m.weight, m.bias, own, 0.0, m.eps)


def normalize(e: Emitter, input: str, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> str:
    """x / max(‖x‖₂, ε)."""
    if p != 2 or out is not None:
        raise CannotTranslate("normalising by another norm than the second")
    axis = axis_of(e, input, dim)
    shape = tuple(1 if index == axis else size for index, size in enumerate(e.shape(input)))
    length = e.step("length", "ReduceL2", [input, e.integers("axes", [axis])], shape, keepdims=1)
    return e.emit("Div", [input, e.step("least", "Max", [length, e.scalar("eps", eps)])])


def local_response_norm(
    e: Emitter, input: str, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> str:
    """LRN: one node; ONNX centres an even window elsewhere, and ONNX Runtime knows pictures only."""
    if size % 2 == 0 or len(e.shape(input)) != 4:
        raise CannotTranslate("local response norm over an even number of channels, or on other than (N, C, H, W)")
    return e.emit("LRN", [input], size=size, alpha=float(alpha), beta=float(beta), bias=float(k))
