"""Weighted layers of every kind, seen as rows of weights and a bias."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.graph import Graph
from engineworks.calibration.layers import from_rows, read_bias, read_layer, read_weights, to_rows

KINDS: dict[str, tuple[str, tuple[int, ...], dict[str, Any], int, int]] = {
    "Conv": ("Conv", (6, 2, 3, 3), {"group": 2}, 0, 6),
    "ConvTranspose": ("ConvTranspose", (4, 6, 3, 3), {}, 1, 6),
    "ConvTranspose in groups": ("ConvTranspose", (4, 3, 3, 3), {"group": 2}, 1, 6),
    "Gemm": ("Gemm", (4, 6), {"beta": 0.5}, 1, 6),
    "Gemm, transposed": ("Gemm", (6, 4), {"transB": 1}, 0, 6),
}


def read(kind: str, shape: tuple[int, ...], attributes: Any, bias: Any) -> tuple[Graph, Any]:
    stored = {"w": np.arange(np.prod(shape), dtype=np.float32).reshape(shape), "b": bias}
    node = helper.make_node(kind, ["x", "w", *["b"] * (bias is not None)], ["y"], name="layer", **attributes)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items() if value is not None]
    graph = Graph(helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:], weights)))
    return graph, read_layer(graph, graph.by_name["layer"])


@pytest.mark.parametrize("case", KINDS)
def test_rows_count_output_channels_and_lead_back(case: str) -> None:
    kind, shape, attributes, axis, outputs = KINDS[case]
    graph, layer = read(kind, shape, attributes, np.ones(outputs, np.float32))
    weights = read_weights(graph, layer)
    rows = to_rows(weights, layer)
    assert (layer.axis, rows.shape[0]) == (axis, shape[axis])
    assert np.array_equal(rows[1], np.take(weights, 1, axis).ravel())
    assert np.array_equal(from_rows(rows, layer, shape), weights)
    assert read_bias(graph, layer).shape == (outputs,)
    assert np.allclose(read_bias(graph, layer), attributes.get("beta", 1.0))


def test_a_bias_of_one_number_is_every_channels() -> None:
    graph, layer = read("Gemm", (6, 4), {"transB": 1}, np.array([[2.0]], np.float32))
    assert read_bias(graph, layer).tolist() == [2.0] * 6


def test_a_layer_without_a_bias_adds_nothing_and_takes_one() -> None:
    graph, layer = read("Conv", (6, 2, 3, 3), {}, None)
    assert layer.bias == ""
    assert layer.takes_bias
    assert not read_bias(graph, layer).any()


def test_a_matmul_takes_no_bias() -> None:
    assert not read("MatMul", (4, 6), {}, None)[1].takes_bias


def test_what_is_no_layer_is_none() -> None:
    assert read("Gemm", (4, 6), {"transA": 1}, None)[1] is None
    assert read("Mul", (1,), {}, None)[1] is None
