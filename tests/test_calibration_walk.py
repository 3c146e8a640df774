"""Two networks side by side: the same values as ONNX Runtime gives, and nothing kept that nobody reads any more."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.graph import Graph
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.walk import Node, Walk, fake, run_all
from engineworks.calibration.weights import round_layer

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((16, 16, 3, 3)).astype(np.float32) for name in ("a.w", "b.w")}
SCALES = {"x": 0.03, "r": 0.2}
BATCHES = [{"x": RNG.standard_normal((2, 16, 6, 6)).astype(np.float32)} for _ in range(3)]


def network() -> Any:
    nodes = [
        helper.make_node("Constant", [], ["two"], name="two", value_float=2.0),
        helper.make_node("Conv", ["x", "a.w"], ["a"], name="a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "b.w"], ["b"], name="b", pads=[1] * 4),
        helper.make_node("Add", ["b", "x"], ["sum"], name="sum"),
        helper.make_node("Split", ["sum"], ["s", "t"], name="split", num_outputs=2, axis=1),
        helper.make_node("Mul", ["s", "t"], ["m"], name="m"),
        helper.make_node("Mul", ["m", "two"], ["y"], name="y"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", 6, 6]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_both_networks_end_where_onnx_runtime_ends_and_hold_nothing_else() -> None:
    from engineworks.calibration.layers import read_layer

    made = network()
    placement, graph = place(made), Graph(made)

    def layer(node: Any, walk: Walk) -> None:
        found = read_layer(graph, node)
        assert found is not None
        weights = round_layer(graph, found, "fp32").floats(found)
        plain, rounded = Node(graph, node), Node(graph, node, {1: weights})
        walk.plain[node.output[0]] = [plain.run({found.data: value})[0] for value in walk.plain[found.data]]
        walk.quantised[node.output[0]] = [rounded.run({found.data: value})[0] for value in walk.on_grid(found.data)]

    walk = Walk(graph, placement, SCALES, BATCHES)
    walk.run(layer)
    quantised = insert_qdq(made, placement, SCALES, rest="fp32")
    assert (set(walk.plain), set(walk.quantised)) == ({"y"}, {"y"})
    assert np.allclose(np.concatenate(walk.plain["y"]), run_all(made, BATCHES), rtol=1e-4, atol=1e-2)
    assert np.allclose(np.concatenate(walk.quantised["y"]), run_all(quantised, BATCHES), rtol=1e-4, atol=1e-2)


def test_the_grid_is_onnx_runtimes() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q")
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="y")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    stored = [
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    ]
    graph = helper.make_graph([node, back], "g", infos[:1], infos[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    values = np.concatenate([np.linspace(-20, 20, 4001), [0.05, 0.15, 0.25]]).astype(np.float32)
    assert np.array_equal(run_all(model, [{"x": values}]), fake(values, 0.1))
