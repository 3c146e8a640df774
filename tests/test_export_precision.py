"""The precision that a graph computes in is counted from the graph, and held against what was asked."""

from collections.abc import Mapping
from typing import Any

import pytest
from onnx import TensorProto, checker, helper

from engineworks.export.half import to_half
from engineworks.export.precision import check_realised, realised, value_types
from engineworks.runtime.errors import ExportError


def graph() -> Any:
    """Two convolutions, a transposed one and two matrix products."""

    def info(name: str, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def weight(name: str, *shape: int) -> Any:
        size = 1
        for axis in shape:
            size *= axis
        return helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * size)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "w"], ["b"], name="second"),
        helper.make_node("ConvTranspose", ["b", "w"], ["c"], name="third"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("Gemm", ["e", "m"], ["f"], name="fourth"),
        helper.make_node("MatMul", ["f", "m"], ["y"], name="fifth"),
    ]
    weights = [weight("w", 2, 2, 1, 1), weight("m", 2, 2)]
    made = helper.make_graph(nodes, "g", [info("x", "n", 2, 4, 4)], [info("y", "n", 2)], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        (graph(), {"float32": 5}),
        (to_half(graph(), "fp16"), {"float16": 5}),
        (to_half(graph(), "bf16"), {"bfloat16": 5}),
    ],
)
def test_weighted_layers_are_counted_by_the_type_they_compute_in(model: Any, counts: Mapping[str, int]) -> None:
    assert realised(model) == counts


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_one_layer_left_in_float32_is_found_by_name(kind: Any) -> None:
    """FP16 asked, FP32 got, exit 0: the failure this exists against."""
    model = to_half(graph(), kind)
    half = TensorProto.FLOAT16 if kind == "fp16" else TensorProto.BFLOAT16
    nodes = list(model.graph.node)
    second = next(node for node in nodes if node.name == "second")
    casts = [helper.make_node("Cast", [name], [f"{name}_32"], to=TensorProto.FLOAT) for name in second.input]
    alone = helper.make_node("Conv", [f"{name}_32" for name in second.input], ["b_32"], name="second")
    back = helper.make_node("Cast", ["b_32"], ["b"], to=half)
    place = nodes.index(second)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *casts, alone, back, *nodes[place + 1 :]])
    checker.check_model(model, full_check=True)
    assert realised(model)["float32"] == 1
    with pytest.raises(
        ExportError, match=rf"asked for {kind}, but 1 layers compute in another type: second \(float32\)"
    ):
        check_realised(model, kind)


def test_a_layer_whose_type_cannot_be_told_does_not_pass() -> None:
    model = graph()
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert value_types(model).get("a", 0) == 0
    with pytest.raises(ExportError, match="second"):
        check_realised(to_half(model, "fp16"), "fp16")


def test_float32_asked_and_half_got_is_refused_too() -> None:
    with pytest.raises(ExportError, match="asked for fp32, but 5 layers compute in another type"):
        check_realised(to_half(graph(), "fp16"), "fp32")


def test_the_message_names_five_and_counts_all() -> None:
    model = graph()
    for index in range(3):
        model.graph.node.insert(0, helper.make_node("Conv", ["x", "w"], [f"more{index}"], name=f"more{index}"))
    with pytest.raises(ExportError, match="but 8 layers") as caught:
        check_realised(model, "fp16")
    assert str(caught.value).count("(float32)") == 5


def test_all_right_is_silent() -> None:
    check_realised(graph(), "fp32")
    check_realised(to_half(graph(), "fp16"), "fp16")
    check_realised(to_half(graph(), "bf16"), "bf16")
