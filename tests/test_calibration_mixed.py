"""Which layers stay in FP16: costs as export counts them, an exact choice within the budget, noise where it is."""

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.mixed import layer_costs, pick, sensitivity
from engineworks.calibration.placement import place
from engineworks.calibration.weights import round_layer
from engineworks.export.count import multiply_adds

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 16, 6, 6)).astype(np.float32)


def network() -> Any:
    nodes = [
        helper.make_node("Conv", ["x", "a.w"], ["a"], name="a", pads=[1, 1, 1, 1], group=2),
        helper.make_node("ConvTranspose", ["a", "b.w"], ["b"], name="b", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "c.w"], ["c"], name="c", transB=1),
        helper.make_node("MatMul", ["c", "d.w"], ["y"], name="d"),
    ]
    shapes = {"a.w": (32, 8, 3, 3), "b.w": (32, 16, 2, 2), "c.w": (24, 16), "d.w": (24, 10)}
    weights = [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_costs_are_the_multiply_adds_that_export_counts() -> None:
    costs = layer_costs(network(), {"x": X})
    assert costs == {"a": 32 * 36 * 8 * 9, "b": 32 * 36 * 16 * 4, "c": 16 * 24, "d": 24 * 10}
    assert sum(costs.values()) == multiply_adds(network())


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=5), st.floats(0, 1))
def test_the_layers_picked_fit_the_budget_and_no_others_that_fit_take_more_away(
    layers: list[tuple[int, float]], share: float
) -> None:
    costs = {str(number): cost for number, (cost, _) in enumerate(layers)}
    noise = {str(number): power for number, (_, power) in enumerate(layers)}
    found = pick(costs, noise, share)
    budget = share * sum(costs.values())
    assert sum(costs[name] for name in found) <= budget + 1e-9
    tight = budget * (1 - len(layers) / 1000)  # each cost is rounded up to a thousandth of the budget
    for size in range(len(layers) + 1):
        for some in itertools.combinations(costs, size):
            if sum(costs[name] for name in some) <= tight:
                assert sum(noise[name] for name in some) <= sum(noise[name] for name in found) + 1e-9


def test_no_share_leaves_nothing_out() -> None:
    assert pick({"a": 1}, {"a": 5.0}, 0.0) == ()


def test_the_layer_with_the_coarsest_input_makes_the_most_noise() -> None:
    from engineworks.calibration.graph import Graph
    from engineworks.calibration.layers import read_layer

    made = network()
    graph, placement = Graph(made), place(made)
    layers = {}
    for name in placement.layers:
        layer = read_layer(graph, graph.by_name[name])
        assert layer is not None
        layers[name] = round_layer(graph, layer, "fp16")
    fine = {"x": 0.03, "a": 1.0, "f": 0.5, "c": 1.0}  # the range of each, by 100 or so
    told: list[int] = []
    for name, tensor in (("a", "x"), ("c", "f")):
        noise = sensitivity(
            made,
            fine | {tensor: fine[tensor] * 60},
            layers,
            [{"x": X}],
            placement.layers,
            on_layer=lambda done, total: told.append(done),
        )
        assert max(noise, key=lambda one: noise[one]) == name
    assert told == [1, 2, 3, 4] * 2


def test_a_layer_that_is_no_candidate_is_not_measured() -> None:
    made = network()
    assert sensitivity(made, {}, {}, [{"x": X}], []) == {}
    assert pick({"a": 1, "b": 2}, {}, 1.0) == ()
