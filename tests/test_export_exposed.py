"""Every value of a graph under its own name."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engineworks.export.exposed import exposed_values
from engineworks.export.half import to_half


def graph() -> ModelProto:
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["scaled"], name="n0"),
        helper.make_node("Relu", ["scaled"], ["y"], name="n1"),
    ]
    weight = numpy_helper.from_array(np.array([1.0009765625, 3.0], np.float32), "w")
    shape: list[str | int | None] = ["N", 2]
    made = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, shape)], [weight]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_what_is_between_is_shown_beside_the_output_and_the_graph_is_left_alone() -> None:
    model = graph()
    before = model.SerializeToString()
    values = exposed_values(model, {"x": np.array([[1, -2]], np.float32)}, {}, None)
    assert {name: value.tolist() for name, value in values.items()} == {
        "scaled": [[1.0009765625, -6]],
        "y": [[1.0009765625, 0]],
    }
    assert model.SerializeToString() == before


def test_a_half_graph_shows_what_is_rounded_and_hands_on_no_more() -> None:
    x = np.array([[1.0009765625, 1]], np.float32)  # its square needs 20 bits
    values = exposed_values(to_half(graph(), "fp16"), {"x": x}, {}, "fp16")
    square = np.float32(np.float16(1.0009765625 * 1.0009765625))
    assert values["scaled"][0, 0] == square
    assert all(value.dtype == np.float32 for value in values.values())
