"""The graph being written: every name is one thing only, and every shape is stated as PyTorch gave it."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engineworks.export.emitter import Emitter, finish
from engineworks.runtime.manifest import Batch

FREE = Batch(1, 4, 8)


def started(*held: tuple[str, torch.Tensor], reserved: tuple[str, ...] = ("x", "y")) -> Emitter:
    emitter = Emitter(
        rows=2,
        reserved=frozenset(reserved),
        names={id(tensor): name for name, tensor in held},
        shapes={"x": (2, 3)},
    )
    emitter.current = "mul"
    return emitter


def emit(emitter: Emitter, node: str, operator: str, *inputs: str) -> str:
    emitter.current = node
    output = emitter.emit(operator, inputs)
    emitter.shapes[output] = (2, 3)
    return output


def written(emitter: Emitter, outputs: dict[str, str], batch: Batch = FREE) -> Any:
    graph = finish(emitter, {"x": (2, 3)}, outputs, batch, 20)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def test_the_modules_own_tensor_is_stored_once_under_its_own_name() -> None:
    weight = torch.ones(3)
    emitter = started(("layer.weight", weight))
    assert emitter.weight("mul/right", weight) == emitter.weight("add/right", weight) == "layer.weight"
    assert list(emitter.weights) == ["layer.weight"]


def test_another_constant_is_named_by_its_node() -> None:
    emitter = started()
    assert emitter.scalar("right", 2.0) == "mul/right"
    assert emitter.integers("shape", [0, -1]) == "mul/shape"
    assert numpy_helper.to_array(emitter.weights["mul/shape"]).dtype == np.int64


def test_two_constants_never_share_a_name() -> None:
    emitter = started()
    first, second = emitter.scalar("right", 1.0), emitter.scalar("right", 2.0)
    assert float(numpy_helper.to_array(emitter.weights[first])) == 1
    assert float(numpy_helper.to_array(emitter.weights[second])) == 2


@pytest.mark.parametrize("own", ["y", "mul", "mul/right"])
def test_a_tensor_called_as_an_output_a_node_or_a_constant_stays_apart(own: str) -> None:
    weight = torch.full((3,), 5.0)
    emitter = started((own, weight), (f"{own}_", torch.zeros(3)))
    names = emitter.weight("w", weight), emitter.scalar("right", 3.0), emitter.emit("Mul", ["x", "x"])
    assert len({*names, "x", "y"}) == 5
    assert float(numpy_helper.to_array(emitter.weights[names[0]])[0]) == 5
    assert float(numpy_helper.to_array(emitter.weights[names[1]])) == 3


def test_nodes_called_as_outputs_and_as_each_others_way_out_stay_apart() -> None:
    emitter = started(reserved=("x", "y", "y_"))
    value = "x"
    for node in ("y", "y_", "y__", "x"):
        value = emit(emitter, node, "Relu", value)
    graph = written(emitter, {"y": value, "y_": value})
    outputs = [name for node in graph.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs) == 5


def test_an_output_is_the_value_itself_unless_it_is_an_input_or_another_output() -> None:
    emitter = started(reserved=("x", "a", "b", "c"))
    value = emit(emitter, "relu", "Relu", "x")
    graph = written(emitter, {"a": value, "b": value, "c": "x"})
    assert [(node.op_type, list(node.input), list(node.output)) for node in graph.graph.node] == [
        ("Relu", ["x"], ["a"]),
        ("Identity", ["a"], ["b"]),
        ("Identity", ["x"], ["c"]),
    ]


def test_an_output_that_is_read_further_on_is_renamed_everywhere() -> None:
    emitter = started(reserved=("x", "a", "b"))
    first = emit(emitter, "relu", "Relu", "x")
    second = emit(emitter, "tanh", "Tanh", first)
    graph = written(emitter, {"b": first, "a": second})
    assert [list(node.input) for node in graph.graph.node] == [["x"], ["b"]]
    assert [value.name for value in graph.graph.output] == ["b", "a"]


@pytest.mark.parametrize(("batch", "axis"), [(FREE, "batch"), (Batch(4, 4, 4), 4)])
def test_the_batch_is_a_name_where_it_is_free_and_a_number_where_it_is_fixed(batch: Batch, axis: Any) -> None:
    emitter = started()
    value = emit(emitter, "relu", "Relu", "x")
    graph = written(emitter, {"y": emit(emitter, "tanh", "Tanh", value)}, batch)
    for stated in (*graph.graph.input, *graph.graph.value_info, *graph.graph.output):
        dims = stated.type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == [axis, 3]
    assert [value.name for value in graph.graph.value_info] == ["relu"]


def test_the_result_is_what_pytorch_gave_the_node_and_not_a_value_of_its_name() -> None:
    emitter = started()
    emitter.results = {"x": (2, 8)}
    emitter.current = "x"
    assert emitter.result == (2, 8)
    assert emitter.shape("x") == (2, 3)
