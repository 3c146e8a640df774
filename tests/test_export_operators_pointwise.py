"""Activations, arithmetic, sums and extremes: right at every batch size and opset, in FP16 too, or refused."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engineworks.export.translate import translate
from engineworks.runtime.manifest import Batch

PICTURE = (2, 4, 5, 6)


def prelu(channels: int) -> nn.PReLU:
    layer = nn.PReLU(channels)
    nn.init.uniform_(layer.weight, 0.1, 0.5)
    return layer


def hard_swish_by_hand(x: Tensor) -> Tensor:
    inner = F.relu6(x + 3.0).div_(6.0)
    return x.clone().mul_(inner)


def halved_by_signs(x: Tensor) -> Tensor:
    y = x.abs() + 1
    y /= 2
    y -= 0.25
    return y**-1.5


ACTIVATIONS: dict[str, nn.Module] = {
    "silu": nn.SiLU(True), "hardswish": nn.Hardswish(True), "hardsigmoid": nn.Hardsigmoid(), "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU("tanh"), "elu": nn.ELU(0.7), "selu": nn.SELU(), "mish": nn.Mish(),
    "softplus": nn.Softplus(), "softsign": nn.Softsign(), "log softmax": nn.LogSoftmax(1),
    "softmax of channels": nn.Softmax2d(), "prelu": prelu(4), "prelu with one slope": prelu(1), "glu": nn.GLU(1),
    "glu of the last axis": nn.GLU(), "relu6": nn.ReLU6(True),
    "dropouts": nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()),
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "silu": lambda x: F.silu(x) + F.hardswish(x) + F.mish(x) + F.hardsigmoid(x) + F.elu(x, 0.3) + F.selu(x),
    "gelu": lambda x: F.gelu(x, approximate="tanh") + 2 * F.gelu(x),
    "others": lambda x: F.softplus(x) + F.softsign(x) + F.relu6(x) + F.hardtanh(x, -0.5, 0.5) + torch.selu(x),
    "hard swish by hand": hard_swish_by_hand,
    "swish by hand, in place": lambda x: x.clone().mul_(x.sigmoid()),
    "in place by signs": halved_by_signs,
    "log softmax": lambda x: F.log_softmax(x, dim=-1) + x.log_softmax(1),
    "clamp below": lambda x: x.clamp(min=-0.5) + torch.clamp(x, max=0.5) + x.clamp_min(0.1) + x.clamp_max(0.2),
    "clamp both": lambda x: x.clamp(-0.5, 0.5) + torch.clip(x, -1, 1) + (x + 1).clamp_(0, 1),
    "minimum": lambda x: torch.minimum(x, x * 2) + x.maximum(-x) + torch.max(x, x * x) - torch.min(x, other=-x),
    "powers": lambda x: x**2 + x.abs().pow(0.5) + (x.abs() + 1) ** -1.5 + torch.square(x) + x.pow(3),
    "roots": lambda x: torch.sqrt(x.abs()) + (x * x + 1).rsqrt() + (x.abs() + 1).reciprocal(),
    "exponentials": lambda x: torch.exp(-x.abs()) + (x.abs() + 1).log() + x.neg().erf(),
    "waves": lambda x: torch.sin(x) * x.cos() - -x,
    "number from the left": lambda x: torch.rsub(x, 2.0) + (1 - x) + 3 / (x.abs() + 1),
    "sums along axes": lambda x: x.amax((2, 3), keepdim=True) + x.amin(dim=-1, keepdim=True) - x.sum((1,), True),
    "means dropping axes": lambda x: x.mean(dim=[2, 3]) + x.sum(dim=(-1, 2)) + torch.amax(x, (2, 3)),
    "an extreme's values": lambda x: torch.max(x, dim=1, keepdim=True)[0] + x.min(1, keepdim=True).values,
    "an extreme's values, unpacked": lambda x: x.max(-1)[0],
    "a sum from nought": lambda x: sum([x, x * 2]) + 0.0,
    "products": lambda x: x @ x.transpose(2, 3) + torch.matmul(x, x.mT),
    "not much": lambda x: x.to(torch.float32).float().clone().detach().contiguous().type_as(x),
}


@pytest.mark.parametrize("what", ACTIVATIONS)
def test_a_module_is_right(what: str, translated: Any) -> None:
    translated(nn.Sequential(nn.Conv2d(4, 4, 1), ACTIVATIONS[what]), *PICTURE)


def test_a_sum_that_starts_from_nought_has_no_node_for_it() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return sum([x, x.relu()])

    graph, *_ = translate(Sum().eval(), {"x": torch.randn(PICTURE)}, ("y",), batch=Batch(1, 4, 8), opset=20)
    assert [node.op_type for node in graph.graph.node] == ["Relu", "Add"]


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_function_is_right(what: str, translated: Any) -> None:
    translated(FUNCTIONS[what], *PICTURE)


REFUSED: dict[str, tuple[Any, str]] = {
    "softplus with a beta": (nn.Softplus(2.0), "another beta"),
    "softplus with a low threshold": (nn.Softplus(1.0, 1.0), "a lower threshold"),
    "clipping by a value": (lambda x: x.clamp(min=x * 0.5), "clipping by other than numbers"),
    "clipping by infinity": (lambda x: x.clamp(max=float("inf")), "clipping by other than numbers"),
    "a power of a value": (lambda x: x.abs() ** x, "a power with other"),
    "a number to the power of a value": (lambda x: 2**x, "operator|a power with other"),
    "a division that rounds": (lambda x: torch.div(x, 2, rounding_mode="floor"), "a division that rounds"),
    "an extreme over everything": (lambda x: x - x.max(), "an extreme over everything"),
    "an extreme's place": (lambda x: x.max(1, keepdim=True)[1] * x, "an operand of type CannotTranslate"),
    "an extreme along the batch": (lambda x: x + x.max(0, keepdim=True)[0], "along the batch"),
    "a largest number over the batch": (lambda x: x - x.amax((0, 2), keepdim=True), "along the batch"),
    "a largest number over everything": (lambda x: x - x.amax(), "over everything"),
    "glu along the batch": (lambda x: F.glu(x, 0), "along the batch"),
    "log softmax along the batch": (nn.LogSoftmax(0), "along the batch"),
    "a sum in double": (lambda x: x.sum(1, dtype=torch.float64), "of another type"),
    "double": (lambda x: x.to(torch.float64), "not float32"),
    "half and back": (lambda x: x.type(torch.float16).float(), "not float32"),
    "a comparison": (lambda x: x * (x > 0), "the operator gt"),
    "the transposed batch": (lambda x: x.flatten(1) @ x.flatten(1).t(), "the operator t"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused(what: str, refusal: Any) -> None:
    net, why = REFUSED[what]
    assert re.search(why, refusal(net, *PICTURE))


@settings(max_examples=30)
@given(
    axes=st.sets(st.integers(-3, -1), min_size=1, max_size=3), keep=st.booleans(),
    kind=st.sampled_from(["mean", "sum", "amax", "amin"]),
)  # fmt: skip
def test_any_axes_are_reduced_rightly(axes: set[int], keep: bool, kind: str, translated: Any) -> None:
    translated(lambda x: getattr(x, kind)(tuple(axes), keep), 2, 3, 4, 5, sizes=(1, 3), half=False)
