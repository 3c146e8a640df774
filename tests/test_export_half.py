"""Casting a graph: every number becomes the half type, float32 stays outside, and nothing else changes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engineworks.export.half import HalfType, to_half
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError

KINDS: tuple[HalfType, ...] = ("fp16", "bf16")
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def info(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape or (2, 4))


def stored(name: str, values: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(nodes: Sequence[Any], weights: Sequence[Any] = (), inputs: Any = None, outputs: Any = None) -> Any:
    graph = helper.make_graph(nodes, "g", inputs or [info("x")], outputs or [info("y")], list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=f"node_{outputs}", **attributes)


def cast(made: Any, kind: HalfType = "fp16") -> Any:
    """Cast, and hold what every cast must keep."""
    before = made.SerializeToString(deterministic=True)
    half = to_half(made, kind)
    assert made.SerializeToString(deterministic=True) == before, "the original was changed"
    onnx.checker.check_model(half, full_check=True)
    assert list(half.graph.input) == list(made.graph.input)
    assert list(half.graph.output) == list(made.graph.output)
    return half


def run(made: Any, **inputs: Any) -> list[Any]:
    names = [value.name for value in made.graph.output]
    return open_session(made.SerializeToString(), "cpu", threads=1).run(inputs or {"x": X}, names)


def weights_of(made: Any) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


@pytest.mark.parametrize("kind", KINDS)
def test_every_float_is_cast_and_every_whole_number_left(kind: HalfType) -> None:
    made = model(
        [
            node("Mul", "x w", "a"),
            node("Reshape", "a shape", "b"),
            node("Gather", "b where", "c", axis=1),
            node("Constant", "", "d", value=stored("", [[1.5], [2.5]])),
            node("Add", "c d", "e"),
            node("Cast", "where", "f", to=TensorProto.FLOAT),
            node("Add", "e f", "y"),
        ],
        [stored("w", [1, 2, 3, 4]), stored("shape", [2, 4], np.int64), stored("where", [3, 0, 1, 2], np.int64)],
    )
    half = cast(made, kind)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds == {"w": TYPES[kind], "shape": TensorProto.INT64, "where": TensorProto.INT64}
    found = onnx.shape_inference.infer_shapes(half).graph.value_info
    assert {v.name: v.type.tensor_type.elem_type for v in found if v.name != "where"} == dict.fromkeys(
        [f"x_{kind}", "a", "b", "c", "d", "e", "f", f"y_{kind}"], TYPES[kind]
    )


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    kind=st.sampled_from(KINDS),
)
def test_weights_are_rounded_as_torch_rounds_them(values: list[float], kind: HalfType) -> None:
    array = np.array(values, np.float32)
    if np.abs(array).max() > (65504 if kind == "fp16" else 3.3895314e38):
        return
    made = model([node("Concat", "w w", "y", axis=0)], [stored("w", array)], outputs=[info("y", 2 * len(array))])
    got = weights_of(cast(made, kind))["w"]
    rounded = torch.from_numpy(array).to(torch.float16 if kind == "fp16" else torch.bfloat16)
    assert np.array_equal(got.view(np.int16), rounded.view(torch.int16).numpy())


def test_fp16_runs_and_answers_as_torch_does() -> None:
    weight, bias = np.random.default_rng(1).standard_normal((2, 4, 4)).astype(np.float32)
    half = cast(
        model(
            [node("Gemm", "x w b", "a", transB=1), node("Relu", "a", "y")], [stored("w", weight), stored("b", bias[0])]
        )
    )
    (got,) = run(half)
    x, w, b = (torch.from_numpy(array).half() for array in (X, weight, bias[0]))
    expected = torch.nn.functional.linear(x, w, b).relu().float().numpy()
    assert got.dtype == np.float32
    summands = np.abs(X) @ np.abs(weight).T + np.abs(bias[0])
    assert (np.abs(got - expected) <= 5 * 2**-11 * summands).all()  # a rounding for each of five summands


def test_constants_of_every_spelling_are_cast() -> None:
    made = model(
        [
            node("Constant", "", "one", value_float=1.1),
            node("Constant", "", "some", value_floats=[1.0, 2.0, 3.0, 4.1]),
            node("Constant", "", "count", value_int=3),
            node("Mul", "x one", "a"),
            node("Mul", "a some", "y"),
        ]
    )
    half = cast(made)
    (got,) = run(half)
    factors = np.float16(1.1) * np.array([1, 2, 3, 4.1], np.float16)
    assert np.allclose(got, X.astype(np.float16) * factors, rtol=2**-9)


def test_a_constant_of_shape_is_cast() -> None:
    made = model(
        [node("ConstantOfShape", "shape", "c", value=stored("", [0.1])), node("Add", "x c", "y")],
        [stored("shape", [2, 4], np.int64)],
    )
    assert run(cast(made))[0].dtype == np.float32


def test_an_operator_that_makes_its_own_type_makes_the_half_one() -> None:
    made = model([node("EyeLike", "x", "eye", dtype=TensorProto.FLOAT), node("Mul", "x eye", "y")])
    half = cast(made)
    assert {item.i for item in half.graph.node[1].attribute if item.name == "dtype"} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("spelling", ["initializer", "value", "value_floats"])
def test_the_scales_of_a_resize_stay_float32(spelling: str) -> None:
    resize = node("Resize", "x  scales", "y")
    resize.ClearField("input")
    resize.input.extend(["x", "", "scales"])
    shapes = [info("x", 1, 1, 2, 2)], [info("y", 1, 1, 4, 4)]
    if spelling == "initializer":
        made = model([resize], [stored("scales", [1, 1, 2, 2])], *shapes)
    elif spelling == "value":
        made = model([node("Constant", "", "scales", value=stored("", [1, 1, 2, 2])), resize], [], *shapes)
    else:
        made = model([node("Constant", "", "scales", value_floats=[1.0, 1.0, 2.0, 2.0]), resize], [], *shapes)
    (got,) = run(cast(made), x=X[:1].reshape(1, 1, 2, 2))
    assert got.shape == (1, 1, 4, 4)


@pytest.mark.parametrize("value", [65505.0, 65519.9, 7e4, -1e9, float("inf"), float("nan")])
def test_a_weight_that_fp16_cannot_hold_is_refused_by_name(value: float) -> None:
    made = model([node("Add", "x layer1.0.weight", "y")], [stored("layer1.0.weight", [1, value, 0, 0])])
    with pytest.raises(ExportError, match=r"weight layer1\.0\.weight: .*beyond fp16 \(65504\)\. Export with --bf16"):
        to_half(made, "fp16")


def test_the_largest_half_is_no_overflow() -> None:
    made = model([node("Add", "x w", "y")], [stored("w", [65504, -65504, 6e-8, 0])])
    assert list(weights_of(cast(made))["w"].astype(np.float32)) == [65504, -65504, 5.9604645e-08, 0]


def test_bf16_holds_what_fp16_cannot() -> None:
    made = model([node("Add", "x w", "y")], [stored("w", [1e30, 0, 0, 0])])
    cast(made, "bf16")
    with pytest.raises(ExportError, match="beyond bf16"):
        to_half(model([node("Add", "x w", "y")], [stored("w", [3.4e38, 0, 0, 0])]), "bf16")


@pytest.mark.parametrize("operator", ["If", "Loop"])
def test_an_operator_that_cannot_be_cast_is_refused_by_name(operator: str) -> None:
    made = model([node("Relu", "x", "y")])
    made.graph.node[0].op_type = operator
    with pytest.raises(
        ExportError, match=f"cannot cast the graph: {operator} at node_y. Export this network with --fp32"
    ):
        to_half(made, "fp16")


def test_q_and_dq_before_their_half_scales_are_refused_with_the_mend() -> None:
    made = model([node("Relu", "x", "y")])
    made.graph.node[0].op_type = "QuantizeLinear"
    made.opset_import[0].version = 18
    with pytest.raises(ExportError, match="node_y takes scales of a half type from opset 19 on, this graph has 18"):
        to_half(made, "fp16")


def test_an_input_that_is_an_output_is_passed_through_unrounded() -> None:
    made = model([node("Relu", "x", "y")], outputs=[info("y"), info("x")])
    assert np.array_equal(run(cast(made))[1], X)


def test_a_weight_that_is_an_output_comes_out_in_float32() -> None:
    made = model([node("Add", "x w", "y")], [stored("w", [0.1, 1, 2, 3])], outputs=[info("y"), info("w", 4)])
    got = run(cast(made))[1]
    assert got.dtype == np.float32
    assert np.array_equal(got, np.array([0.1, 1, 2, 3], np.float16).astype(np.float32))


def test_a_value_that_is_two_outputs_comes_out_twice() -> None:
    made = model([node("Relu", "x", "y"), node("Identity", "y", "z")], outputs=[info("y"), info("z")])
    first, second = run(cast(made))
    assert np.array_equal(first, second)


def test_an_output_that_is_read_inside_is_read_in_the_half_type() -> None:
    made = model([node("Relu", "x", "y"), node("Tanh", "y", "z")], outputs=[info("y"), info("z")])
    assert [node.op_type for node in cast(made).graph.node].count("Cast") == 3


def test_an_input_with_many_readers_is_cast_once() -> None:
    made = model([node("Mul", "x x", "a"), node("Add", "a x", "b"), node("Sub", "x b", "y")])
    half = cast(made)
    assert [n.op_type for n in half.graph.node] == ["Cast", "Mul", "Add", "Sub", "Cast"]


def test_an_input_of_whole_numbers_is_left_alone() -> None:
    made = model(
        [node("Gather", "w i", "y", axis=0)],
        [stored("w", X)],
        inputs=[info("i", 2, kind=TensorProto.INT64)],
    )
    (got,) = run(cast(made), i=np.array([1, 0]))
    assert np.array_equal(got, X[::-1].astype(np.float16).astype(np.float32))


def test_an_empty_weight_is_no_obstacle() -> None:
    cast(model([node("Concat", "x w", "y", axis=0)], [stored("w", np.zeros((0, 4)))]))


def test_an_outer_name_that_is_taken_inside_gives_an_invalid_graph_and_no_wrong_one() -> None:
    made = model([node("Relu", "x", "x_fp16"), node("Tanh", "x_fp16", "y")])
    with pytest.raises(onnx.checker.ValidationError, match="single static assignment"):
        onnx.checker.check_model(to_half(made, "fp16"))
