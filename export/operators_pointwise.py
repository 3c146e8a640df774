"""Rules of what works on each number by itself: activations, arithmetic, and sums and extremes along axes."""

import math
from typing import Any

from engineworks.export.emitter import CannotTranslate, Emitter
from engineworks.export.operands import Rule, axes_of, axis_of, check_broadcast, tensor

_EXACT_GELU = 20  # the operator set that brought Gelu


def unary(operator_name: str, **attributes: Any) -> Rule:
    """One ONNX operator with one input; ``inplace`` is the tracer's affair."""

    def rule(e: Emitter, input: str, inplace: bool = False) -> str:
        return e.emit(operator_name, [input], **attributes)

    return rule


def same(e: Emitter, input: Any, *_: Any, **__: Any) -> Any:
    """Nothing."""
    return input


def cast(e: Emitter, input: str, *_: Any, **__: Any) -> str:
    """Nothing, for a value that stays float32; every other is refused by its type."""
    return input


def dropout(e: Emitter, input: str, p: float = 0.5, training: bool = True, inplace: bool = False) -> str:
    """Nothing, outside training."""
    if training:
        raise CannotTranslate("dropout in training")
    return input


def stochastic_depth(e: Emitter, input: str, p: float, mode: str, training: bool = True) -> str:
    """Nothing, outside training."""
    return dropout(e, input, p, training and p != 0)


def clip(e: Emitter, input: str, min_val: Any = None, max_val: Any = None, inplace: bool = False) -> str:
    """Clip between two numbers, either of which may be missing."""
    if (min_val is None and max_val is None) or not all(
        value is None or (isinstance(value, (int, float)) and math.isfinite(value)) for value in (min_val, max_val)
    ):
        raise CannotTranslate("clipping by other than numbers")
    limits = ["" if value is None else e.scalar(name, value) for name, value in (("min", min_val), ("max", max_val))]
    return e.emit("Clip", [input, *(limits if limits[1] else limits[:1])])


def clamp(e: Emitter, input: str, min: Any = None, max: Any = None) -> str:
    """Clip, under the names of ``torch.clamp``."""
    return clip(e, input, min, max)


def relu6(e: Emitter, input: str, inplace: bool = False) -> str:
    """Clip between 0 and 6."""
    return clip(e, input, 0.0, 6.0)


def leaky_relu(e: Emitter, input: str, negative_slope: float = 0.01, inplace: bool = False) -> str:
    """LeakyRelu."""
    return e.emit("LeakyRelu", [input], alpha=float(negative_slope))


def elu(e: Emitter, input: str, alpha: float = 1.0, inplace: bool = False) -> str:
    """Elu."""
    return e.emit("Elu", [input], alpha=float(alpha))


def prelu(e: Emitter, input: str, weight: Any) -> str:
    """PRelu, its slope lined up with the channels."""
    if isinstance(weight, str) or weight.dim() != 1:
        raise CannotTranslate("PReLU with a slope that is computed")
    axes = (-1, *(1 for _ in e.shape(input)[2:])) if weight.numel() > 1 else (1,)
    return e.emit("PRelu", [input, tensor(e, weight.reshape(axes), "slope")])


def silu(e: Emitter, input: str, inplace: bool = False) -> str:
    """x·σ(x)."""
    return e.emit("Mul", [input, e.step("sigmoid", "Sigmoid", [input])])


def gelu(e: Emitter, input: str, *, approximate: str = "none") -> str:
    """Gelu, or by erf or tanh where the operator set has none."""
    if approximate not in {"none", "tanh"}:
        raise CannotTranslate(f"GELU by {approximate}")
    if e.opset >= _EXACT_GELU:
        return e.emit("Gelu", [input], approximate=approximate)
    half = e.step("half", "Mul", [input, e.scalar("a_half", 0.5)])
    if approximate == "none":
        inner = e.step("erf", "Erf", [e.step("scaled", "Mul", [input, e.scalar("factor", 0.5**0.5)])])
    else:
        cube = e.step("cube", "Mul", [e.step("square", "Mul", [input, input]), input])
        small = e.step("small", "Mul", [cube, e.scalar("cubed", 0.044715)])
        total = e.step("total", "Add", [input, small])
        inner = e.step("tanh", "Tanh", [e.step("scaled", "Mul", [total, e.scalar("factor", (2 / math.pi) ** 0.5)])])
    return e.emit("Mul", [half, e.step("more", "Add", [inner, e.scalar("one", 1.0)])])


def hardsigmoid(e: Emitter, input: str, inplace: bool = False) -> str:
    """HardSigmoid with PyTorch's slope."""
    return e.emit("HardSigmoid", [input], alpha=1 / 6, beta=0.5)


def softplus(e: Emitter, input: str, beta: float = 1.0, threshold: float = 20.0) -> str:
    """Softplus, from whose threshold on the two agree to float32's last bit."""
    if beta != 1 or threshold < 20:
        raise CannotTranslate("softplus with another beta, or with a lower threshold")
    return e.emit("Softplus", [input])


def softmax(operator_name: str) -> Rule:
    """Softmax or LogSoftmax along an axis that is not the batch."""

    def rule(e: Emitter, input: str, dim: int | None = None, *, _stacklevel: int = 3, dtype: Any = None) -> str:
        if dim is None or dtype is not None:
            raise CannotTranslate("softmax without an axis, or with a dtype")
        return e.emit(operator_name, [input], axis=axis_of(e, input, dim))

    return rule


def glu(e: Emitter, input: str, dim: int = -1) -> str:
    """a·σ(b), of the two halves."""
    axis, size = axis_of(e, input, dim), e.result
    halves = [
        e.step(name, "Slice", [input, *(e.integers(f"{name}_{what}", [n]) for what, n in (
            ("start", index * size[axis]), ("end", (index + 1) * size[axis]), ("axis", axis)))], size)
        for index, name in enumerate(("a", "b"))
    ]  # fmt: skip
    return e.emit("Mul", [halves[0], e.step("sigmoid", "Sigmoid", [halves[1]])])


def binary(operator_name: str) -> Rule:
    """One ONNX operator with two inputs, either of which may be a constant or a number; no sum with the number 0."""

    def rule(e: Emitter, input: Any, other: Any, *, alpha: float = 1) -> str:
        if alpha != 1:
            raise CannotTranslate("add or sub with alpha")
        if operator_name == "Add" and (_is_zero(input) or _is_zero(other)):  # what loops and sum() start from
            value = other if _is_zero(input) else input
            if isinstance(value, str):
                return value
        names = [tensor(e, input, "left"), tensor(e, other, "right")]
        check_broadcast(e, input, other)
        return e.emit(operator_name, names)

    return rule


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def swapped(rule: Rule) -> Rule:
    """The same operator with its operands the other way about: ``rsub``."""

    def turned(e: Emitter, input: Any, other: Any, **options: Any) -> Any:
        return rule(e, other, input, **options)

    return turned


def div(e: Emitter, input: Any, other: Any, *, rounding_mode: Any = None) -> str:
    """Div, without rounding."""
    if rounding_mode is not None:
        raise CannotTranslate("a division that rounds")
    return str(binary("Div")(e, input, other))


def power(e: Emitter, input: Any, exponent: Any) -> str:
    """Pow with a number; squares and roots by operators of their own."""
    if not isinstance(input, str) or not isinstance(exponent, (int, float)) or isinstance(exponent, bool):
        raise CannotTranslate("a power with other than a number")
    if exponent == 2:
        return e.emit("Mul", [input, input])
    if exponent == 0.5:
        return e.emit("Sqrt", [input])
    return e.emit("Pow", [input, e.scalar("exponent", float(exponent))])


def square(e: Emitter, input: str) -> str:
    """x·x."""
    return e.emit("Mul", [input, input])


def rsqrt(e: Emitter, input: str) -> str:
    """1/√x."""
    return e.emit("Reciprocal", [e.step("sqrt", "Sqrt", [input])])


def reduce(operator_name: str) -> Rule:
    """ReduceMean, ReduceSum, ReduceMax or ReduceMin over axes that are not the batch."""

    def rule(e: Emitter, input: str, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> str:
        if dtype is not None:
            raise CannotTranslate("a sum or mean of another type")
        axes = axes_of(e, input, dim, "a sum, mean or extreme")
        return e.emit(operator_name, [input, e.integers("axes", axes)], keepdims=int(keepdim))

    return rule


def extreme(pairwise: str, along: str) -> Rule:
    """``torch.max`` and ``torch.min``: of two values, or along one axis, of whose results the first alone is known."""

    def rule(e: Emitter, input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
        second = dim if other is None else other
        if second is None:
            raise CannotTranslate("an extreme over everything")
        if not isinstance(second, int):
            return binary(pairwise)(e, input, second)
        axes = e.integers("axes", [axis_of(e, input, second)])
        values = e.step("values", along, [input, axes], e.parts[0][1], keepdims=int(keepdim))
        return values, CannotTranslate("the indices of an extreme")

    return rule
