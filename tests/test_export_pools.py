"""Pools that do nothing go; all others, names of outputs, and every answer stay."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engineworks.export.pools import remove_empty_pools
from engineworks.runtime.backend import open_session

EMPTY: dict[str, Any] = {"kernel_shape": [1, 1]}


def info(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, "h", "w"])


def chain(*nodes: tuple[str, dict[str, Any]]) -> Any:
    """Build x → v0 → v1 → … → y from operators and their attributes."""
    names = ["x", *(f"v{index}" for index in range(len(nodes) - 1)), "y"]
    made = [
        helper.make_node(operator, [names[index]], [names[index + 1]], name=f"n{index}", **attributes)
        for index, (operator, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(made, "g", [info("x")], [info("y")], value_info=[info(name) for name in names[1:-1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: Any) -> Any:
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 5)).astype(np.float32)
    return open_session(model.SerializeToString(), "cpu", threads=1).run({"x": x}, ["y"])[0]


@pytest.mark.parametrize(
    "attributes",
    [
        EMPTY,
        EMPTY | {"strides": [1, 1]},
        EMPTY | {"pads": [0, 0, 0, 0]},
        EMPTY | {"ceil_mode": 1},
        EMPTY | {"count_include_pad": 1, "dilations": [1, 1]},
    ],
)
def test_a_pool_that_does_nothing_goes(attributes: dict[str, Any]) -> None:
    model = chain(("Relu", {}), ("AveragePool", attributes), ("Tanh", {}))
    before = answer(model)
    assert remove_empty_pools(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Tanh"]
    assert np.array_equal(answer(model), before)
    assert [value.name for value in model.graph.value_info] == ["v0"]


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("AveragePool", EMPTY | {"strides": [2, 2]}),
        ("AveragePool", EMPTY | {"strides": [1, 2]}),
        ("AveragePool", EMPTY | {"pads": [0, 0, 1, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [2, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", EMPTY),
        ("GlobalAveragePool", {}),
    ],
)
def test_any_other_pool_stays(operator: str, attributes: dict[str, Any]) -> None:
    model = chain(("Relu", {}), (operator, attributes), ("Tanh", {}))
    before = model.SerializeToString(deterministic=True)
    assert remove_empty_pools(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_a_chain_of_them_goes_whole() -> None:
    model = chain(("AveragePool", EMPTY), ("AveragePool", EMPTY), ("Relu", {}), ("AveragePool", EMPTY), ("Tanh", {}))
    before = answer(model)
    assert remove_empty_pools(model) == 3
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[0].input[0] == "x"
    assert np.array_equal(answer(model), before)


def test_one_that_produces_an_output_stays_and_keeps_its_name() -> None:
    model = chain(("Relu", {}), ("AveragePool", EMPTY), ("AveragePool", EMPTY))
    before = answer(model)
    assert remove_empty_pools(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Relu", "AveragePool"]
    assert np.array_equal(answer(model), before)


def test_every_reader_of_it_reads_its_source() -> None:
    model = chain(("Relu", {}), ("AveragePool", EMPTY), ("Tanh", {}))
    model.graph.node.append(helper.make_node("Mul", ["v1", "v1"], ["z"], name="square"))
    model.graph.output.append(info("z"))
    assert remove_empty_pools(model) == 1
    assert list(model.graph.node[-1].input) == ["v0", "v0"]
    onnx.checker.check_model(model, full_check=True)


def test_an_operator_of_another_domain_is_not_ours_to_judge() -> None:
    model = chain(("Relu", {}), ("AveragePool", EMPTY), ("Tanh", {}))
    model.graph.node[1].domain = "com.example"
    assert remove_empty_pools(model) == 0
