"""The 255-level shift: the float function stays, the grid becomes finer, and what cannot follow stays where it is."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper

from engineworks.calibration.bias import correct_biases
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.shift import shift
from engineworks.calibration.walk import run_all
from engineworks.runtime.compare import sqnr

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 16, 6, 6)).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def conv(source: str, output: str, window: int = 1, pad: int = 0, **attributes: Any) -> Any:
    return node("Conv", f"{source} {output}.w{window} {output}.b", output, pads=[pad] * 4, **attributes)


def model(nodes: list[Any], outputs: int = 16, zero: float = 0.0) -> Any:
    stored = {"zero": np.array(zero, np.float32), "six": np.array(6, np.float32)}
    for part in nodes:
        for name in part.input:
            if ".w" in name:
                window = int(name[-1])
                inputs = 32 if part.input[0] == "cat" else 16
                stored[name] = RNG.normal(0, 0.3, (16, inputs, window, window)).astype(np.float32)
            if name.endswith(".b"):
                stored[name] = RNG.standard_normal(16).astype(np.float32)
            if name.endswith(".fc"):
                stored[name] = RNG.normal(0, 0.3, (16, 16)).astype(np.float32)
    stored["flat"] = np.array([0, 16], np.int64)
    read = {name for part in nodes for name in part.input}
    rank = 1 if nodes[-1].op_type == "Gemm" else 3
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *["?"] * rank])],
        [numpy_helper.from_array(value, name) for name, value in stored.items() if name in read],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def values_of(made: Any) -> dict[str, Any]:
    """Run X through the graph; return every tensor that the placement names."""
    from onnx import ModelProto, ValueInfoProto

    found = {"x": X}
    for name in place(made).scale_of:
        shown = ModelProto()
        shown.CopyFrom(made)
        shown.graph.ClearField("output")
        shown.graph.output.append(ValueInfoProto(name=name))
        found[name] = X if name == "x" else run_all(shown, [{"x": X}])
    return found


def scales_of(made: Any) -> dict[str, float]:
    return {name: float(np.abs(values).max()) / 127 for name, values in values_of(made).items()}


CHAINS: dict[str, tuple[list[Any], set[str]]] = {
    "ReLU": ([conv("x", "a"), node("Relu", "a", "r"), conv("r", "y")], {"r"}),
    "ReLU6": ([conv("x", "a"), node("Clip", "a zero six", "r"), conv("r", "y")], {"r"}),
    "two readers": (
        [conv("x", "a"), node("Relu", "a", "r"), conv("r", "b"), conv("r", "c"), node("Add", "b c", "y")],
        {"r"},
    ),
    "through a max pool": (
        [conv("x", "a"), node("Relu", "a", "r"), node("MaxPool", "r", "m", kernel_shape=[3, 3], pads=[1] * 4),
         conv("m", "y")],
        {"r", "m"},
    ),
    "to the classifier": (
        [conv("x", "a"), node("Relu", "a", "r"), node("GlobalAveragePool", "r", "p"), node("Reshape", "p flat", "f"),
         node("Gemm", "f y.fc y.b", "y")],
        {"r", "p", "f"},
    ),
    "a concat": (
        [conv("x", "a"), node("Relu", "a", "r"), conv("x", "b"), node("Relu", "b", "s"),
         node("Concat", "r s", "cat", axis=1), conv("cat", "y")],
        {"r", "s", "cat"},
    ),
    "a residual block": (
        [conv("x", "a"), node("Relu", "a", "r"), conv("r", "b"), node("Relu", "b", "q"), conv("q", "c"),
         node("Add", "c r", "sum"), node("Relu", "sum", "t"), conv("t", "y")],
        {"r", "q", "t"},
    ),
}  # fmt: skip
PADDED = {
    "padded": ([conv("x", "a"), node("Relu", "a", "r"), conv("r", "y", 3, 1)], {"r"}),
    "padded and not": (
        [conv("x", "a"), node("Relu", "a", "r"), conv("r", "b", 3, 1), conv("r", "c"), conv("r", "d", 3, 1),
         node("Add", "b c", "e"), node("Add", "e d", "y")],
        {"r"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*CHAINS, *PADDED])
def test_the_float_function_is_unchanged_and_the_right_tensors_move(case: str) -> None:
    nodes, moved = {**CHAINS, **PADDED}[case]
    made = model(nodes)
    found = shift(made, place(made), scales_of(made), padded=True)
    checker.check_model(found.model)
    assert set(found.moved) == moved
    before, after = run_all(made, [{"x": X}]), run_all(found.model, [{"x": X}])
    assert sqnr(before, after) > 110  # float32 rounding of sums that the shift makes larger


@pytest.mark.parametrize("case", [*CHAINS, *PADDED])
def test_quantised_the_answers_are_nearer_to_float(case: str) -> None:
    made = model({**CHAINS, **PADDED}[case][0])
    scales, placement = scales_of(made), place(made)
    means = {name: values.mean(axis=(0, *range(2, values.ndim))) for name, values in values_of(made).items()}
    exact = run_all(made, [{"x": X}])
    layers = correct_biases(made, placement, means)
    plain = run_all(insert_qdq(made, placement, scales, weights=layers), [{"x": X}])
    found = shift(made, placement, scales, padded=True)
    moved = place(found.model)
    layers = correct_biases(found.model, moved, found.means(means))
    finer = run_all(insert_qdq(found.model, moved, found.scales, weights=layers), [{"x": X}])
    assert sqnr(exact, finer) > sqnr(exact, plain)


@settings(max_examples=10)
@given(scale=st.floats(1e-3, 10.0))
def test_the_float_function_is_unchanged_whatever_the_scale(scale: float) -> None:
    made = model(CHAINS["a residual block"][0])
    scales = dict.fromkeys(place(made).scale_of, scale)
    found = shift(made, place(made), scales)
    after = run_all(found.model, [{"x": X}])
    # the amount comes and goes in float32: half a unit in the last place of 128 steps times the weights' sums
    assert np.abs(run_all(made, [{"x": X}]) - after).max() <= 1280 * scale * 16 * 2.0**-22 + 1e-4


def test_the_step_is_a_255th_and_zero_is_a_step() -> None:
    made = model(CHAINS["ReLU"][0])
    found = shift(made, place(made), {"x": 0.1, "r": 0.255}, rest="fp32")
    assert found.scales["r"] == pytest.approx(0.127, rel=1e-6)
    assert found.moved["r"] == 128 * found.scales["r"]


def test_padding_stays_by_default() -> None:
    for nodes, _ in PADDED.values():
        made = model(nodes)
        found = shift(made, place(made), scales_of(made))
        assert (dict(found.moved), found.model.SerializeToString()) == ({}, made.SerializeToString())


def test_layers_that_pad_alike_share_a_pad() -> None:
    made = model(PADDED["padded and not"][0])
    found = shift(made, place(made), scales_of(made), padded=True)
    assert [part.op_type for part in found.model.graph.node].count("Pad") == 1
    assert found.padded == {"r_padded": "r"}
    assert found.scales["r_padded"] == found.scales["r"]


def test_means_move_along() -> None:
    made = model(PADDED["padded"][0])
    found = shift(made, place(made), scales_of(made), padded=True)
    means = found.means({"x": np.zeros(16), "r": np.ones(16)})
    assert np.allclose(means["r"], 1 - found.moved["r"])
    assert np.array_equal(means["r_padded"], means["r"])


STAYING = {
    "no ReLU": [conv("x", "a"), conv("a", "y")],
    "an output": [conv("x", "a"), node("Relu", "a", "y")],
    "read by a Tanh too": [
        conv("x", "a"), node("Relu", "a", "r"), node("Tanh", "r", "t"), conv("r", "b"), node("Add", "b t", "y"),
    ],
    "made by no layer": [node("Tanh", "x", "t"), node("Relu", "t", "r"), conv("r", "y")],
    "a layer that something else reads": [
        conv("x", "a"), node("Relu", "a", "r"), node("Tanh", "a", "t"), conv("r", "b"), node("Add", "b t", "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", STAYING)
def test_what_cannot_follow_stays(case: str) -> None:
    made = model(STAYING[case])
    assert shift(made, place(made), dict.fromkeys(place(made).scale_of, 0.1), padded=True).moved == {}


def test_a_clip_that_does_not_end_at_zero_stays() -> None:
    made = model(CHAINS["ReLU6"][0], zero=-1.0)
    assert shift(made, place(made), scales_of(made)).moved == {}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("case", ["ReLU6", "a residual block", "padded"])
def test_tensorrt_rtx_builds_it_in_int8_without_a_word(case: str) -> None:
    from engineworks.export.engine import compile_engine

    made = model({**CHAINS, **PADDED}[case][0])
    found = shift(made, place(made), scales_of(made), padded=True)
    graph = insert_qdq(found.model, place(found.model), found.scales)
    engine = compile_engine(graph.SerializeToString(), flavour="rtx", batch=(1, 2, 4), targets=("sm89",))
    assert {kind.split()[-1] for kind in engine.layer_types} == {"int8"}
    assert engine.warnings == ()
