"""What our own translation knows: the rule of each PyTorch module and function; the rules stand in families beside.

A rule gets the emitter and the operator's own arguments, under PyTorch's names: a value's ONNX name where PyTorch has a
tensor that depends on the input, a torch tensor where it is constant. It raises ``CannotTranslate`` for every argument
that it was not written for; unknown arguments are a TypeError, which counts as the same.
"""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engineworks.export.operands import Rule
from engineworks.export.operators_layers import (
    attention,
    channel_shuffle,
    conv,
    conv_module,
    conv_transpose,
    conv_transpose_module,
    linear,
    matmul,
    unfolded,
)
from engineworks.export.operators_norm import (
    batch_norm,
    batch_norm_module,
    group_norm,
    group_norm_module,
    instance_norm,
    instance_norm_module,
    layer_norm,
    local_response_norm,
    normalize,
)
from engineworks.export.operators_pointwise import (
    binary,
    cast,
    clamp,
    clip,
    div,
    dropout,
    elu,
    extreme,
    gelu,
    glu,
    hardsigmoid,
    leaky_relu,
    power,
    prelu,
    reduce,
    relu6,
    rsqrt,
    same,
    silu,
    softmax,
    softplus,
    square,
    stochastic_depth,
    swapped,
    unary,
)
from engineworks.export.operators_pool import adaptive_pool, avg_pool, max_pool
from engineworks.export.operators_resize import interpolate, pad
from engineworks.export.operators_shape import (
    attribute,
    cat,
    expand,
    expand_as,
    flatten,
    item,
    movedim,
    narrow,
    permute,
    repeat,
    reshape,
    reshape_as,
    select,
    size,
    split,
    squeeze,
    stack,
    transpose,
    unbind,
    unflatten,
    unsqueeze,
)
from engineworks.export.trace import STOCHASTIC_DEPTH

if TYPE_CHECKING:
    import torch

Reader = Callable[[Any], tuple[Rule, tuple[Any, ...]]]
_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_UNARY = {
    "tanh": "Tanh", "sigmoid": "Sigmoid", "exp": "Exp", "log": "Log", "abs": "Abs", "neg": "Neg", "sqrt": "Sqrt",
    "erf": "Erf", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos",
}  # fmt: skip
_VIEWS: dict[str, Rule] = {
    "flatten": flatten, "unflatten": unflatten, "reshape": reshape, "unsqueeze": unsqueeze, "squeeze": squeeze,
    "permute": permute, "transpose": transpose, "swapaxes": transpose, "swapdims": transpose, "movedim": movedim,
    "moveaxis": movedim, "narrow": narrow, "select": select, "unbind": unbind, "chunk": split, "split": split,
}  # fmt: skip
_METHODS: dict[str, Rule] = {
    "view": reshape, "reshape_as": reshape_as, "view_as": reshape_as, "expand": expand, "expand_as": expand_as,
    "repeat": repeat, "contiguous": same, "clone": same, "detach": same, "to": cast, "float": cast, "type_as": cast,
    "type": cast, "size": size, "__getitem__": item,
}  # fmt: skip


def _plain(rule: Rule, *names: str) -> Reader:
    """Read a rule's arguments off a module by their names there."""
    return lambda m: (rule, tuple(getattr(m, name) for name in names))


def _whole(rule: Rule, *more: Any) -> Reader:
    """Give a rule the module itself."""
    return lambda m: (rule, (m, *more))


def module_rules() -> "dict[type[torch.nn.Module], Reader]":
    """Return for each exact module type how its rule and the arguments behind the input are read off the module.

    Only these stay whole in a trace; of all others, subclasses of these too, the forward is followed.
    """
    from torch import nn

    known: dict[type[torch.nn.Module], Reader] = {
        nn.Linear: _plain(linear, "weight", "bias"),
        nn.BatchNorm1d: _whole(batch_norm_module, (2, 3)),
        nn.BatchNorm2d: _whole(batch_norm_module, (4,)),
        nn.BatchNorm3d: _whole(batch_norm_module, (5,)),
        nn.LayerNorm: _plain(layer_norm, "normalized_shape", "weight", "bias", "eps"),
        nn.GroupNorm: _whole(group_norm_module),
        nn.ReLU: _plain(unary("Relu")),
        nn.ReLU6: _plain(relu6),
        nn.Hardtanh: _plain(clip, "min_val", "max_val"),
        nn.LeakyReLU: _plain(leaky_relu, "negative_slope"),
        nn.Tanh: _plain(unary("Tanh")),
        nn.Sigmoid: _plain(unary("Sigmoid")),
        nn.SiLU: _plain(silu),
        nn.GELU: lambda m: (lambda e, input: gelu(e, input, approximate=m.approximate), ()),
        nn.Hardswish: _plain(unary("HardSwish")),
        nn.Hardsigmoid: _plain(hardsigmoid),
        nn.Mish: _plain(unary("Mish")),
        nn.ELU: _plain(elu, "alpha"),
        nn.SELU: _plain(unary("Selu")),
        nn.Softplus: _plain(softplus, "beta", "threshold"),
        nn.PReLU: _plain(prelu, "weight"),
        nn.Softmax: _plain(softmax("Softmax"), "dim"),
        nn.LogSoftmax: _plain(softmax("LogSoftmax"), "dim"),
        nn.LocalResponseNorm: _plain(local_response_norm, "size", "alpha", "beta", "k"),
        nn.Flatten: _plain(flatten, "start_dim", "end_dim"),
        nn.Identity: _plain(same),
    }
    for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout):
        known[kind] = _plain(dropout, "p", "training")
    for dims in (1, 2, 3):
        known[getattr(nn, f"Conv{dims}d")] = _whole(conv_module)
        known[getattr(nn, f"ConvTranspose{dims}d")] = _whole(conv_transpose_module)
        known[getattr(nn, f"MaxPool{dims}d")] = _plain(max_pool(dims), *_POOL)
        average = _AVERAGE if dims > 1 else _AVERAGE[:-1]
        known[getattr(nn, f"AvgPool{dims}d")] = _plain(avg_pool(dims), *average)
        known[getattr(nn, f"AdaptiveAvgPool{dims}d")] = _plain(adaptive_pool(dims, "AveragePool"), "output_size")
        known[getattr(nn, f"AdaptiveMaxPool{dims}d")] = _plain(
            adaptive_pool(dims, "MaxPool"), "output_size", "return_indices"
        )
        known[getattr(nn, f"InstanceNorm{dims}d")] = _whole(instance_norm_module, dims + 2)
    return known


def function_rules() -> dict[Any, Rule]:
    """Return the rule of each function, by the function; of each tensor method, by its name."""
    import torch

    known: dict[Any, Rule] = {**_METHODS, **_functional(), STOCHASTIC_DEPTH: stochastic_depth}
    for name, rule in {**{name: unary(onnx) for name, onnx in _UNARY.items()}, **_arithmetic(), **_VIEWS}.items():
        for place in (name, f"{name}_"):
            known[place] = rule  # the method, and the one that writes in place
            if hasattr(torch, place):
                known[getattr(torch, place)] = rule
    for name in ("add", "sub", "mul", "matmul", "neg", "abs", "pow", "truediv"):
        for place in {name, f"i{name}"} & set(dir(operator)):
            known[getattr(operator, place)] = known["div" if name == "truediv" else name]
    return {**known, getattr: attribute, operator.getitem: item}


def _arithmetic() -> dict[str, Rule]:
    """Return what is a function of ``torch`` and a method of its tensors alike."""
    add, sub, mul = binary("Add"), binary("Sub"), binary("Mul")
    return {
        "add": add, "sub": sub, "subtract": sub, "rsub": swapped(sub), "mul": mul, "multiply": mul, "div": div,
        "divide": div, "true_divide": div, "minimum": binary("Min"), "maximum": binary("Max"), "pow": power,
        "square": square, "rsqrt": rsqrt, "matmul": matmul, "bmm": matmul, "relu": unary("Relu"), "clamp": clamp,
        "clip": clamp, "clamp_min": lambda e, input, min: clip(e, input, min, None),
        "clamp_max": lambda e, input, max: clip(e, input, None, max), "softmax": softmax("Softmax"),
        "log_softmax": softmax("LogSoftmax"), "mean": reduce("ReduceMean"), "sum": reduce("ReduceSum"),
        "amax": reduce("ReduceMax"), "amin": reduce("ReduceMin"), "max": extreme("Max", "ReduceMax"),
        "min": extreme("Min", "ReduceMin"), "selu": unary("Selu"),
    }  # fmt: skip


def _functional() -> dict[Any, Rule]:
    """Return the rules of ``torch.nn.functional``, and of what only ``torch`` has."""
    import torch
    from torch.nn import functional as F

    known: dict[Any, Rule] = {
        **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), cat),
        **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), dropout),
        **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), dropout),
        **dict.fromkeys((torch.softmax, F.softmax), softmax("Softmax")),
        **dict.fromkeys((F.prelu, torch.prelu), prelu),
        **dict.fromkeys((F.pixel_shuffle, torch.pixel_shuffle), unfolded("up")),
        **dict.fromkeys((F.pixel_unshuffle, torch.pixel_unshuffle), unfolded("down")),
        **dict.fromkeys((F.channel_shuffle, torch.channel_shuffle), channel_shuffle),
        torch.stack: stack,
        torch.batch_norm: lambda e, x, w, b, mean, var, training, momentum, eps, _: batch_norm(
            e, x, mean, var, w, b, training, momentum, eps
        ),
        F.relu: unary("Relu"),
        F.tanh: unary("Tanh"),
        F.sigmoid: unary("Sigmoid"),
        F.log_softmax: softmax("LogSoftmax"),
        F.linear: linear,
        F.leaky_relu: leaky_relu,
        F.relu6: relu6,
        F.hardtanh: lambda e, input, min_val=-1.0, max_val=1.0, inplace=False: clip(e, input, min_val, max_val),
        F.silu: silu,
        F.gelu: gelu,
        F.hardswish: unary("HardSwish"),
        F.hardsigmoid: hardsigmoid,
        F.mish: unary("Mish"),
        F.elu: elu,
        F.selu: unary("Selu"),
        F.softplus: softplus,
        F.softsign: unary("Softsign"),
        F.glu: glu,
        F.local_response_norm: local_response_norm,
        F.batch_norm: batch_norm,
        F.layer_norm: layer_norm,
        F.group_norm: group_norm,
        F.instance_norm: instance_norm,
        F.normalize: normalize,
        F.pad: pad,
        F.interpolate: interpolate,
        F.scaled_dot_product_attention: attention,
    }
    for dims in (1, 2, 3):
        known[getattr(F, f"conv{dims}d")] = conv
        known[getattr(F, f"conv_transpose{dims}d")] = conv_transpose
        known[getattr(F, f"max_pool{dims}d")] = max_pool(dims)
        known[getattr(F, f"avg_pool{dims}d")] = avg_pool(dims)
        known[getattr(F, f"adaptive_avg_pool{dims}d")] = adaptive_pool(dims, "AveragePool")
        known[getattr(F, f"adaptive_max_pool{dims}d")] = adaptive_pool(dims, "MaxPool")
    return known
