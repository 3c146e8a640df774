"""TensorRT's placement rules, one test each, on graphs of a few nodes."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.placement import Decision, place

CHANNELS = 16


def stored(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def conv(name: str, source: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [name], name=name, **attributes)


def model(nodes: list[Any], weights: list[Any], channels: int = CHANNELS, outputs: tuple[str, ...] = ("y",)) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 8, 8])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def sized(*layers: tuple[str, int, int, int]) -> list[Any]:
    """Weights and biases: name, output channels, input channels of a group, window."""
    made = [stored(f"{name}.weight", outputs, inputs, window, window) for name, outputs, inputs, window in layers]
    return made + [stored(f"{name}.bias", outputs) for name, outputs, _, _ in layers]


def decisions(made: Any, node: str, role: str = "input", **options: Any) -> Decision:
    return next(one for one in place(made, **options).decisions if (one.node, one.role) == (node, role))


def one_conv(outputs: int, inputs: int, window: int = 3, between: bool = False, **attributes: Any) -> Decision:
    """Judge one convolution that reads the graph's input, or a Tanh of it."""
    source = "t" if between else "x"
    nodes = [helper.make_node("Tanh", ["x"], ["t"], name="t")] * between + [conv("c", source, **attributes)]
    groups = attributes.get("group", 1)
    made = model(nodes, sized(("c", outputs, inputs // groups, window)), inputs, outputs=("c",))
    return decisions(made, "c")


def test_a_convolution_is_quantised_at_its_input_and_weights_and_its_bias_stays_float() -> None:
    made = model([conv("c", "x"), helper.make_node("Relu", ["c"], ["y"], name="r")], sized(("c", 16, 16, 3)))
    placed = place(made)
    assert placed.layers == ("c",)
    assert placed.activations == {"x": (("c", 0),)}
    assert decisions(made, "c", "weight").quantised
    assert "axis 0" in decisions(made, "c", "weight").why
    assert (decisions(made, "c", "bias").quantised, decisions(made, "c", "bias").rule) == (False, "float bias")


@pytest.mark.parametrize(
    ("kind", "shape", "attributes", "axis"),
    [
        ("ConvTranspose", (16, 32, 3, 3), {}, 1),
        ("Conv", (32, 16, 3, 3), {}, 0),
        ("Gemm", (32, 16), {"transB": 1}, 0),
        ("Gemm", (16, 32), {}, 1),
        ("MatMul", (16, 32), {}, 1),
    ],
)
def test_the_weights_axis_counts_output_channels(kind: str, shape: tuple[int, ...], attributes: Any, axis: int) -> None:
    node = helper.make_node(kind, ["x", "w"], ["y"], name="w", **attributes)
    assert f"axis {axis};" in decisions(model([node], [stored("w", *shape)]), "w", "weight").why


def test_a_transposed_convolution_is_int8_for_tensorrt_and_float_for_rtx_which_would_not_compute_it_so() -> None:
    nodes = [
        conv("a", "x"),
        helper.make_node("ConvTranspose", ["a", "up.weight"], ["up"], name="up", strides=[2, 2]),
        conv("y", "up"),
    ]
    made = model(nodes, [*sized(("a", 16, 16, 3), ("y", 16, 16, 3)), stored("up.weight", 16, 16, 2, 2)])
    assert place(made).layers == place(made, flavour="tensorrt").layers == ("a", "up", "y")
    placed = place(made, flavour="rtx")
    assert placed.layers == ("a", "y")
    assert list(placed.activations) == ["x", "up"]
    for role in ("input", "weight"):
        found = decisions(made, "up", role, flavour="rtx")
        assert (found.quantised, found.rule) == (False, "transposed")
        assert "TensorRT-RTX computes int8 transposed convolutions in float16" in found.why
    assert decisions(made, "up", flavour="rtx", left_out=["up"]).rule == "left out"


def test_a_product_of_two_activations_stays_float() -> None:
    made = model([helper.make_node("MatMul", ["x", "x"], ["y"], name="m")], [])
    assert (decisions(made, "m").quantised, decisions(made, "m").rule) == (False, "constant weights")
    assert place(made).activations == {}


def test_a_transposed_gemm_input_stays_float() -> None:
    made = model([helper.make_node("Gemm", ["x", "w"], ["y"], name="m", transA=1)], [stored("w", 8, 8)])
    assert decisions(made, "m").rule == "constant weights"


def test_a_stack_of_matrices_stays_float() -> None:
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], [stored("w", 16, 8, 8)])
    assert decisions(made, "m").rule == "one matrix"


def test_a_single_output_column_stays_float() -> None:
    made = model([helper.make_node("Gemm", ["x", "w"], ["y"], name="m", transB=1)], [stored("w", 1, 64)])
    assert decisions(made, "m").rule == "single column"


def test_depthwise_convolutions_are_quantised_where_they_fill_tiles() -> None:
    assert one_conv(32, 32, group=32).rule == "grouped"
    assert one_conv(32, 32, group=32).quantised
    assert not one_conv(30, 30, group=30).quantised
    assert not one_conv(32, 32, window=1, group=2).quantised


def test_few_channels_stay_float_as_in_the_first_layers_of_lenet5() -> None:
    assert not one_conv(6, 1, window=5).quantised  # C1
    assert one_conv(16, 6, window=5, between=True).quantised  # C3: 16 fill a tile
    assert not one_conv(12, 12, between=True).quantised
    assert not one_conv(8, 8, between=True).quantised


def test_the_first_layer_is_quantised_though_pictures_have_three_channels() -> None:
    assert (one_conv(64, 3, window=7).quantised, one_conv(64, 3, window=7).rule) == (True, "first layer")


def test_the_last_layer_is_quantised_and_its_scores_are_not() -> None:
    made = model([helper.make_node("Tanh", ["x"], ["t"], name="t"), conv("y", "t")], sized(("y", 16, 16, 1)))
    assert (decisions(made, "y").quantised, decisions(made, "y").rule) == (True, "last layer")
    assert "y" not in place(made).activations


def test_a_layer_left_out_stays_float_with_its_tensors() -> None:
    made = model([conv("a", "x"), conv("y", "a")], sized(("a", 16, 16, 3), ("y", 16, 16, 3)))
    placed = place(made, left_out=["y"])
    assert placed.layers == ("a",)
    assert list(placed.activations) == ["x"]
    assert decisions(made, "y", left_out=["y"]).rule == "left out"


# --- sums ---


def residual(*nodes: Any, weights: list[Any]) -> Any:
    return model([*nodes, helper.make_node("Relu", ["sum"], ["y"], name="r")], weights)


def add(left: str, right: str) -> Any:
    return helper.make_node("Add", [left, right], ["sum"], name="sum")


@pytest.mark.parametrize("order", [("b", "x"), ("x", "b")])
def test_only_the_skip_input_of_a_residual_sum_is_quantised(order: tuple[str, str]) -> None:
    made = residual(conv("a", "x"), conv("b", "a"), add(*order), weights=sized(("a", 16, 16, 3), ("b", 16, 16, 3)))
    placed = place(made)
    assert placed.activations == {"x": (("a", 0), ("sum", order.index("x"))), "a": (("b", 0),)}
    assert decisions(made, "sum", "skip").tensor == "x"
    assert decisions(made, "sum", "value").tensor == "b"


def test_the_shorter_way_is_the_skip_where_both_sides_are_layers() -> None:
    weights = sized(("a", 16, 16, 3), ("b", 16, 16, 3), ("short", 16, 16, 1))
    for order in (("b", "short"), ("short", "b")):
        made = residual(conv("a", "x"), conv("b", "a"), conv("short", "x"), add(*order), weights=weights)
        assert decisions(made, "sum", "skip").tensor == "short"


def test_a_sum_without_a_layer_before_it_stays_float() -> None:
    nodes = [helper.make_node(kind, ["x"], [kind], name=kind) for kind in ("Tanh", "Relu")]
    made = residual(*nodes, add("Tanh", "Relu"), weights=[])
    assert place(made).activations == {}
    assert decisions(made, "sum", "value").rule == "element-wise"


def test_a_sum_stays_float_where_its_layer_is_read_elsewhere_or_left_out() -> None:
    weights = sized(("a", 16, 16, 3))
    made = model([conv("a", "x"), add("a", "x"), helper.make_node("Mul", ["a", "sum"], ["y"])], weights)
    assert place(made).activations == {"x": (("a", 0),)}
    made = residual(conv("a", "x"), add("a", "x"), weights=weights)
    assert place(made, left_out=["a"]).activations == {}


def test_a_sum_with_a_constant_is_no_residual() -> None:
    made = residual(conv("a", "x"), add("a", "w"), weights=[*sized(("a", 16, 16, 3)), stored("w", 16, 8, 8)])
    assert decisions(made, "sum", "value").rule == "element-wise"


# --- what is never quantised for its own sake ---


@pytest.mark.parametrize(
    ("kind", "attributes", "rule"),
    [
        ("LRN", {"size": 5}, "normalisation"),
        ("AveragePool", {"kernel_shape": [2, 2]}, "average pooling"),
        ("GlobalAveragePool", {}, "average pooling"),
        ("ReduceMean", {}, "average pooling"),
        ("Softmax", {}, "scores"),
        ("Sigmoid", {}, "scores"),
        ("Flatten", {}, "moves only"),
        ("Relu", {}, "activation"),
        ("Tanh", {}, "element-wise"),
    ],
)
def test_these_stay_float_and_say_by_which_rule(kind: str, attributes: Any, rule: str) -> None:
    nodes = [conv("a", "x"), helper.make_node(kind, ["a"], ["y"], name="n", **attributes)]
    made = model(nodes, sized(("a", 16, 16, 3)))
    found = decisions(made, "n", "value")
    assert (found.quantised, found.rule, found.tensor) == (False, rule, "a")
    assert "a" not in place(made).activations


def test_resize_stays_float() -> None:
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
    made = model([helper.make_node("Resize", ["x", "", "s"], ["y"], name="n")], [scales])
    assert decisions(made, "n", "value").rule == "resize"


def test_a_concat_is_quantised_once_behind_it() -> None:
    nodes = [
        conv("a", "x"),
        conv("b", "x"),
        helper.make_node("Concat", ["a", "b"], ["c"], name="n", axis=1),
        conv("y", "c"),
    ]
    made = model(nodes, sized(("a", 16, 16, 1), ("b", 16, 16, 1), ("y", 16, 32, 1)))
    assert place(made).activations == {"x": (("a", 0), ("b", 0)), "c": (("y", 0),)}
    assert decisions(made, "n", "value").rule == "concat"


def test_a_max_pool_hands_its_scale_on() -> None:
    pools = [
        helper.make_node("MaxPool", ["x"], ["p"], name="p", kernel_shape=[2, 2]),
        helper.make_node("MaxPool", ["p"], ["q"], name="q", kernel_shape=[2, 2]),
    ]
    weights = sized(("a", 16, 16, 1), ("y", 16, 16, 1))
    placed = place(model([conv("a", "x"), *pools, conv("y", "q")], weights, outputs=("y", "a")))
    assert placed.scale_of == {"x": "x", "q": "x"}, "two poolings behind the tensor that a quantises"
    alone = place(model([*pools, conv("y", "q")], weights))
    assert alone.scale_of == {"q": "q"}


def test_a_tensor_read_by_several_layers_is_quantised_once() -> None:
    made = model([conv("a", "x"), conv("y", "x")], sized(("a", 16, 16, 1), ("y", 16, 16, 1)), outputs=("y", "a"))
    assert place(made).activations == {"x": (("a", 0), ("y", 0))}


def test_every_node_has_a_decision_and_nameless_ones_are_told_by_what_they_compute() -> None:
    made = model([conv("a", "x"), helper.make_node("Relu", ["a"], ["y"])], sized(("a", 16, 16, 3)))
    for node in made.graph.node:
        node.name = ""
    assert {one.node for one in place(made).decisions} == {"a", "y"}
    assert all(one.why and one.rule and one.tensor for one in place(made).decisions)
