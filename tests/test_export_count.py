"""The multiply-add counter: each operator against a hand count, whole networks against the registry."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engineworks.export.count import multiply_adds
from engineworks.export.half import to_half
from engineworks.export.translate import translate
from engineworks.models import find
from engineworks.models.initialise import materialise
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

FAST = ("lenet5", "plain18", "googlenet-paper")
# the whole exports of test_export_networks.py hold the others
SLOW = ("resnet101", "resnet101-paper", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16_bn", "vgg19")


def model(nodes: list[Any], shape: list[Any], weights: Mapping[str, tuple[int, ...]], out: Any = None) -> ModelProto:
    """A graph from ``x`` to ``y`` with weights of these shapes, all ones."""
    stored = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def node(kind: str, inputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, ["y"], name=f"the_{kind}", **attributes)


def test_a_convolution_counts_its_window_at_every_place() -> None:
    conv = node("Conv", ["x", "w"], strides=[2, 2], pads=[1, 1, 1, 1])
    assert multiply_adds(model([conv], ["n", 3, 9, 11], {"w": (8, 3, 3, 3)})) == 8 * 5 * 6 * 3 * 9


def test_a_grouped_convolution_counts_its_own_group_alone() -> None:
    conv = node("Conv", ["x", "w"], group=2)
    assert multiply_adds(model([conv], ["n", 4, 5, 5], {"w": (6, 2, 1, 1)})) == 6 * 25 * 2


def test_a_bias_costs_nothing() -> None:
    plain = model([node("Conv", ["x", "w"])], ["n", 3, 4, 4], {"w": (2, 3, 1, 1)})
    biased = model([node("Conv", ["x", "w", "b"])], ["n", 3, 4, 4], {"w": (2, 3, 1, 1), "b": (2,)})
    assert multiply_adds(plain) == multiply_adds(biased) == 2 * 16 * 3


def test_a_transposed_convolution_counts_its_window_at_every_place_of_the_input() -> None:
    conv = node("ConvTranspose", ["x", "w"], strides=[2, 2])
    assert multiply_adds(model([conv], ["n", 3, 4, 5], {"w": (3, 7, 2, 2)})) == 4 * 5 * 3 * 7 * 4


@pytest.mark.parametrize(("turned", "weight"), [(0, (10, 4)), (1, (4, 10))])
def test_a_gemm_counts_rows_times_inner_times_columns(turned: int, weight: tuple[int, int]) -> None:
    assert multiply_adds(model([node("Gemm", ["x", "w"], transB=turned)], ["n", 10], {"w": weight}), rows=3) == 120


def test_a_gemm_may_turn_its_first_operand() -> None:
    gemm = node("Gemm", ["w", "x"], transA=1)
    assert multiply_adds(model([gemm], [6, 5], {"w": (6, 2)})) == 2 * 6 * 5


def test_a_matrix_product_counts_every_matrix_of_a_stack() -> None:
    assert multiply_adds(model([node("MatMul", ["x", "w"])], ["n", 7, 3, 4], {"w": (4, 5)})) == 7 * 3 * 4 * 5


def test_a_free_batch_counts_as_often_as_asked_and_a_fixed_one_as_it_is() -> None:
    conv, weights = node("Conv", ["x", "w"]), {"w": (2, 3, 1, 1)}
    assert multiply_adds(model([conv], ["n", 3, 4, 4], weights), rows=5) == 5 * 2 * 16 * 3
    assert multiply_adds(model([conv], [4, 3, 4, 4], weights), rows=5) == 4 * 2 * 16 * 3


def test_a_size_that_a_stored_scale_tells_is_found() -> None:
    larger = helper.make_node("Resize", ["x", "", "scales"], ["large"])
    given = model([larger, node("Conv", ["large", "w"])], ["n", 3, 4, 4], {"w": (2, 3, 1, 1)})
    given.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 3], np.float32), "scales"))
    assert multiply_adds(given) == 2 * 8 * 12 * 3


def test_a_size_that_nothing_tells_is_refused_by_its_layer() -> None:
    open_sides = model([node("Conv", ["x", "w"])], ["n", 3, "h", "w"], {"w": (2, 3, 1, 1)})
    with pytest.raises(ExportError, match=r"multiply-adds of the_Conv: the size of x is not known"):
        multiply_adds(open_sides)


def test_control_flow_is_refused_by_its_name() -> None:
    body = helper.make_graph([node("Relu", ["x"])], "b", [], [helper.make_empty_tensor_value_info("y")])
    choice = node("If", ["c"], then_branch=body, else_branch=body)
    with pytest.raises(ExportError, match=r"the_If: If runs as the data say"):
        multiply_adds(model([choice], ["n", 3], {}))


def test_nodes_of_another_domain_are_not_taken_for_onnx_ones() -> None:
    foreign = node("Conv", ["x", "w"])
    foreign.domain = "vendor"
    given = model([foreign], ["n", 3, 4, 4], {"w": (2, 3, 1, 1)})
    given.opset_import.append(helper.make_opsetid("vendor", 1))
    assert multiply_adds(given) == 0


def test_the_graph_counted_is_left_as_it_was() -> None:
    given = model([node("Conv", ["x", "w"])], ["n", 3, 4, 4], {"w": (2, 3, 1, 1)})
    before = given.SerializeToString()
    multiply_adds(given, rows=3)
    assert given.SerializeToString() == before


def graph_of(name: str) -> ModelProto:
    """Export with weights of zero: counting asks for shapes alone."""
    network = find(name)
    with torch.device("meta"):
        module = network.build()
    materialise(module)
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()
    module.eval().requires_grad_(False)
    inputs = {"input": torch.zeros(2, *network.input_shape)}
    return translate(module, inputs, ("output",), batch=Batch(1, 2, 4), opset=20)[0]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_registrys_multiply_adds_are_those_of_the_graph(name: str) -> None:
    graph = graph_of(name)
    assert multiply_adds(graph) == find(name).multiply_adds
    assert multiply_adds(graph, rows=7) == 7 * find(name).multiply_adds


def test_precision_changes_no_count() -> None:
    graph = graph_of("plain18")
    assert multiply_adds(to_half(graph, "fp16")) == find("plain18").multiply_adds


# torchvision 0.29.1, _ops of the weights enums: GFLOPS, which there are multiply-adds in 10^9
TORCHVISION = {
    "alexnet": 0.714, "googlenet": 1.498, "resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "resnet101": 7.801,
    "resnet152": 11.514, "vgg11": 7.609, "vgg13": 11.308, "vgg16": 15.47, "vgg19": 19.632, "vgg11_bn": 7.609,
    "vgg13_bn": 11.308, "vgg16_bn": 15.47, "vgg19_bn": 19.632,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_figures_are_those_that_torchvision_publishes(name: str) -> None:
    assert round(find(name).multiply_adds / 1e9, 3) == TORCHVISION[name]
