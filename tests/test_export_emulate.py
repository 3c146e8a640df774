"""The float32 stand-in for a typed graph answers as PyTorch does in that type."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from engineworks.export.emulate import emulate
from engineworks.export.half import HalfType, to_half
from engineworks.export.translate import translate
from engineworks.runtime.backend import open_session
from engineworks.runtime.compare import sqnr
from engineworks.runtime.manifest import Batch

KINDS: tuple[HalfType, ...] = ("fp16", "bf16")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x).relu(), self.right(x)], 1)
        z = (y * 0.25 + 1).mean([2, 3])
        scores: Tensor = self.fc(z.view(x.shape[0], 2, 8).sum(1))
        return scores


NETS = {
    "one convolution": nn.Conv2d(3, 8, 3),
    "one linear layer": nn.Sequential(nn.Flatten(), nn.Linear(108, 5)),
    "convolutions": nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)
    ),
    "batch norm alone": nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Sigmoid()),
    "branches": Branches(),
}  # fmt: skip


def exported(net: nn.Module, x: Tensor) -> Any:
    graph, *_ = translate(net, {"x": x[:2]}, ("y",), batch=Batch(1, 4, 8), opset=22)
    return graph


def run(model: Any, x: Tensor) -> Any:
    return open_session(model.SerializeToString(), "cpu", threads=1).run({"x": x.numpy()}, ["y"])[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_it_keeps_the_decibels_of_torch_in_that_type(name: str, kind: HalfType) -> None:
    torch.manual_seed(0)
    net, x = NETS[name].eval(), torch.randn(8, 3, 6, 6)
    typed = to_half(exported(net, x), kind)
    model = emulate(typed, kind)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(typed.graph.input)
    assert list(model.graph.output) == list(typed.graph.output)
    dtype = torch.float16 if kind == "fp16" else torch.bfloat16
    with torch.no_grad():
        exact, half = net(x).numpy(), copy.deepcopy(net).to(dtype)(x.to(dtype)).float().numpy()
    assert abs(sqnr(exact, run(model, x)) - sqnr(exact, half)) < 0.1


def test_the_last_tensor_is_rounded_too() -> None:
    net, x = nn.Conv2d(3, 8, 1).eval(), torch.randn(2, 3, 4, 4)
    got = run(emulate(to_half(exported(net, x), "bf16"), "bf16"), x)
    assert np.array_equal(got, torch.from_numpy(got).bfloat16().float().numpy())


def test_weights_are_stored_once_and_in_the_half_type() -> None:
    net, x = nn.Linear(6, 5).eval(), torch.randn(2, 6)
    typed = to_half(exported(net, x), "bf16")
    assert list(emulate(typed, "bf16").graph.initializer) == list(typed.graph.initializer)


def test_constants_and_casts_inside_are_widened() -> None:
    def info(name: str, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, [3])

    nodes = [
        helper.make_node(
            "Constant", [], ["c"], name="c", value=numpy_helper.from_array(np.array([1.1, 2.2, 3.3], np.float32))
        ),
        helper.make_node("Cast", ["i"], ["f"], name="f", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "c"], ["a"], name="a"),
        helper.make_node("Add", ["a", "x"], ["y"], name="y"),
    ]
    graph = helper.make_graph(nodes, "g", [info("x"), info("i", TensorProto.INT64)], [info("y")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    model = emulate(to_half(made, "bf16"), "bf16")
    onnx.checker.check_model(model, full_check=True)
    x, i = np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 1001])
    (got,) = open_session(model.SerializeToString(), "cpu").run({"x": x, "i": i}, ["y"])
    f, c, h = (torch.tensor(values).bfloat16() for values in (i, np.array([1.1, 2.2, 3.3], np.float32), x))
    assert np.array_equal(got, (f * c + h).float().numpy())
    assert not any(t.type.tensor_type.elem_type == TensorProto.BFLOAT16 for t in model.graph.value_info)
