"""Equalised channels: the float function stays, no tensor passes the loudest tied to it, what cannot follow stays."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from engineworks.calibration.equalise import equalise, tied
from engineworks.calibration.graph import Graph
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.walk import run_all
from engineworks.runtime.compare import sqnr

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 16, 6, 6)).astype(np.float32)
ROWS = [{"x": X[index : index + 1]} for index in range(len(X))]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def conv(source: str, output: str, group: int = 1, bias: bool = True) -> Any:
    window = 3 if group > 1 else 1
    names = f"{source} {output}.w" + (f" {output}.b" if bias else "")
    return node("Conv", names, output, pads=[window // 2] * 4, group=group, kernel_shape=[window] * 2)


def model(nodes: list[Any], spread: float = 1.0, seed: int = 0) -> Any:
    """Make weights whose output channels differ in loudness by ``exp(spread)`` and more."""
    rng = np.random.default_rng(seed)
    stored = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    for part in (part for part in nodes if part.op_type == "Conv"):
        group = next(item.i for item in part.attribute if item.name == "group")
        window = 3 if group > 1 else 1
        loud = np.exp(rng.normal(0, spread, 16))[:, None, None, None]
        stored[part.input[1]] = (loud * rng.normal(0, 0.3, (16, 16 // group, window, window))).astype(np.float32)
        if len(part.input) > 2:
            stored[part.input[2]] = rng.standard_normal(16).astype(np.float32)
    stored |= {"sizes": np.array([0, 16 * 36]), "free": np.array([-1, 16 * 36])}
    stored["g.w"] = rng.normal(0, 0.3, (5, 16)).astype(np.float32)
    stored["h.w"] = rng.normal(0, 0.3, (16 * 36, 5)).astype(np.float32)
    read = {name for part in nodes for name in part.input}
    shape = ["n", "c", "h", "w"][: 2 if nodes[-1].op_type == "Gemm" else 4]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in stored.items() if name in read],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def values_of(made: Any, name: str) -> Any:
    shown = ModelProto()
    shown.CopyFrom(made)
    shown.graph.ClearField("output")
    shown.graph.output.append(ValueInfoProto(name=name))
    return run_all(shown, [{"x": X}])


CHAINS: dict[str, tuple[list[Any], list[set[str]]]] = {
    "a linear tensor": ([conv("x", "a"), conv("a", "y")], [{"a"}]),
    "behind a ReLU": ([conv("x", "a"), node("Relu", "a", "r"), conv("r", "y")], [{"a", "r"}]),
    "a depthwise reader": ([conv("x", "a"), node("Relu", "a", "r"), conv("r", "d", 16), conv("d", "y")],
                           [{"a", "r"}, {"d"}]),
    "a reader of four groups": ([conv("x", "a"), conv("a", "d", 4), conv("d", "y")], [{"a"}, {"d"}]),
    "a layer without a bias": ([conv("x", "a", bias=False), conv("a", "y", bias=False)], [{"a"}]),
    "a residual sum": (
        [conv("x", "a"), conv("a", "b"), conv("b", "c"), node("Add", "a c", "s"), node("Relu", "s", "r"),
         node("MaxPool", "r", "m", kernel_shape=[3, 3], pads=[1] * 4), conv("m", "y")],
        [{"a", "c", "s", "r", "m"}, {"b"}],
    ),
    "a classifier": (
        [conv("x", "a"), node("Relu", "a", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
         node("Gemm", "f g.w", "y", transB=1)],
        [{"a", "r", "p", "f"}],
    ),
    "a classifier of every pixel": (
        [conv("x", "a"), node("Reshape", "a sizes", "f"), node("Gemm", "f h.w", "y", transB=0)], [{"a", "f"}],
    ),
    "a matrix of mixed rows": (
        [conv("x", "a"), node("Reshape", "a free", "f"), node("Gemm", "f h.w", "y", transB=0)], [],
    ),
    "a ReLU6": ([conv("x", "a"), node("Clip", "a zero six", "r"), conv("r", "y")], []),
    "a sum with the input": ([conv("x", "a"), node("Add", "x a", "s"), conv("s", "y")], []),
    "a sigmoid": ([conv("x", "a"), node("Sigmoid", "a", "r"), conv("r", "y")], []),
    "a tensor that is an output": ([conv("x", "a"), node("Relu", "a", "y")], []),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_the_tensors_that_move_are_those_whose_neighbours_can_follow(chain: str) -> None:
    nodes, wanted = CHAINS[chain]
    assert [set(group.tensors) for group in tied(Graph(model(nodes)))] == wanted


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(CHAINS)), st.floats(0, 3), st.integers(0, 9), st.floats(0, 1))
def test_the_float_function_stays_and_no_tensor_passes_the_loudest_tied_to_it(
    chain: str, spread: float, seed: int, power: float
) -> None:
    nodes, groups = CHAINS[chain]
    plain = model(nodes, spread, seed)
    made = equalise(plain, ROWS, power=power).model
    checker.check_model(made)
    assert sqnr(run_all(plain, [{"x": X}]), run_all(made, [{"x": X}])) > 100  # float32 keeps about 140 dB of a product
    for group in groups:
        before, after = (max(np.abs(values_of(graph, name)).max() for name in group) for graph in (plain, made))
        assert after == pytest.approx(before, rel=1e-4)


def test_at_full_power_all_channels_of_a_linear_tensor_are_equally_loud() -> None:
    made = equalise(model(CHAINS["a linear tensor"][0], spread=0.5), ROWS, power=1.0).model
    loud = np.abs(values_of(made, "a")).max(axis=(0, 2, 3))
    assert loud == pytest.approx(np.full(16, loud.max()), rel=1e-4)


def test_a_silent_channel_is_raised_by_no_more_than_sixteen() -> None:
    plain = model(CHAINS["a linear tensor"][0])
    weights = next(tensor for tensor in plain.graph.initializer if tensor.name == "a.w")
    values = numpy_helper.to_array(weights).copy()
    values[3] = 0
    weights.CopyFrom(numpy_helper.from_array(values, "a.w"))
    bias = next(tensor for tensor in plain.graph.initializer if tensor.name == "a.b")
    bias.CopyFrom(numpy_helper.from_array(np.zeros(16, np.float32), "a.b"))
    made = equalise(plain, ROWS, power=1.0).model
    before, after = (
        numpy_helper.to_array(next(t for t in graph.graph.initializer if t.name == "y.w"))[:, 3]
        for graph in (plain, made)
    )
    assert after == pytest.approx(before / 16)


def test_weights_that_two_layers_share_are_scaled_for_each_apart() -> None:
    plain = model(CHAINS["a linear tensor"][0])
    plain.graph.node[1].input[1] = "a.w"
    made = equalise(plain, ROWS).model
    assert made.graph.node[0].input[1] != made.graph.node[1].input[1]
    assert sqnr(run_all(plain, [{"x": X}]), run_all(made, [{"x": X}])) > 100


def test_quiet_channels_beside_loud_ones_gain_resolution() -> None:
    def kept(graph: Any) -> float:
        scales = {name: float(np.abs(values_of(graph, name) if name != "x" else X).max()) / 127
                  for name in place(graph).scale_of}  # fmt: skip
        return sqnr(exact, run_all(insert_qdq(graph, place(graph), scales, rest="fp32"), [{"x": X}]))

    plain = model(CHAINS["a linear tensor"][0], spread=1.5)
    weights = next(tensor for tensor in plain.graph.initializer if tensor.name == "y.w")
    loud = np.abs(values_of(plain, "a")).max(axis=(0, 2, 3))
    values = numpy_helper.to_array(weights) / loud[None, :, None, None]  # each channel matters as much as the others
    weights.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "y.w"))
    exact = run_all(plain, [{"x": X}])
    assert kept(equalise(plain, ROWS).model) > kept(plain) + 3
