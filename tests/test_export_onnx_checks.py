"""ONNX files of other makes: what is refused by its operators, types and names, wherever in the file it stands."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.export.inputs import parse_shape
from engineworks.export.onnx_checks import check_operators, check_outputs, check_shapes, nodes_of, tensors_of
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])


def model(*nodes: Any, stored: tuple[Any, ...] = (), outputs: tuple[Any, ...] = (Y,)) -> Any:
    return helper.make_model(helper.make_graph(nodes, "g", [X], outputs, stored))


def branching(inside: Any) -> Any:
    """A graph whose one node chooses between two branches, each of one node."""
    end = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([inside], "b", [], [end])
    choose = helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch, else_branch=branch)
    return model(choose, stored=(numpy_helper.from_array(np.array(True), "yes"),))


def node(kind: str, *inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs or ("x",), [output], f"my {kind}", **attributes)


REFUSED: dict[str, tuple[Any, str]] = {
    "another domain": (node("Gelu", domain="com.me"), r"net.onnx: Gelu at my Gelu is no operator of ONNX \(com.me\)"),
    "quantised": (node("QuantizeLinear", "x", "s", output="z"), "is quantised already .QuantizeLinear."),
    "random": (node("RandomNormalLike", output="z"), "RandomNormalLike at my RandomNormalLike draws random numbers"),
    "a waking Dropout": (node("Dropout", "x", "", "yes", output="z"), "Dropout at my Dropout draws random numbers"),
    "half precision": (
        node("Constant", output="z", value=numpy_helper.from_array(np.ones(1, np.float16), "h")),
        "net.onnx: h is stored in half precision",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("inside", [False, True])
def test_what_cannot_be_proven_is_refused_by_its_name_in_branches_too(case: str, inside: bool) -> None:
    bad, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        check_operators(branching(bad) if inside else model(bad), "net.onnx")


def test_a_dropout_that_lets_everything_through_is_taken() -> None:
    never = numpy_helper.from_array(np.array(False), "no")
    check_operators(model(node("Dropout"), node("Dropout", "x", "", "no"), stored=(never,)), "net.onnx")


def test_inner_graphs_are_walked() -> None:
    made = branching(node("Constant", output="z", value=numpy_helper.from_array(np.ones(3, np.float32), "c")))
    assert [one.op_type for one in nodes_of(made.graph)] == ["If", "Constant", "Constant"]
    assert [tensor.name for tensor in tensors_of(made.graph)] == ["yes", "c", "c"]


def test_outputs_that_nothing_computes_or_that_come_twice_are_refused() -> None:
    check_outputs(model(node("Relu")), "net.onnx")
    with pytest.raises(ExportError, match="output x is an input or a constant, passed through"):
        check_outputs(model(node("Relu"), outputs=(Y, X)), "net.onnx")
    with pytest.raises(ExportError, match="lists its output y twice"):
        check_outputs(model(node("Relu"), outputs=(Y, Y)), "net.onnx")


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["a"], ["3x4"], None),
        (["a", "b"], ["b:3x4", "a:2"], None),
        (["a", "b"], ["c:2"], "takes the inputs a, b; got c"),
        (["a", "b"], ["2"], "name each input of net.onnx once"),
        (["a", "b"], ["a:2", "a:3"], "name each input of net.onnx once"),
    ],
)
def test_shapes_name_each_input_once(names: list[str], given: list[str], message: str | None) -> None:
    recipe = Recipe("net.onnx", shapes=tuple(map(parse_shape, given)))
    if message is None:
        check_shapes(recipe, names)
        return
    with pytest.raises(ExportError, match=message):
        check_shapes(recipe, names)
