"""What quantising costs a layer, from the graph's own steps."""

import math

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnx.parser import parse_model

from engineworks.export.steps import clipping_noise, find_steps, rounding_noise

GRAPH = """<ir_version: 9, opset_import: ["" : 20]>
g (float[N,4,8,8] x) => (float16[N,6,8,8] y)
<float s = {0.5}, int8 z = {0}, float[6] ws, int8[6] wz = {0,0,0,0,0,0}, int8[6,4,1,1] w>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear<axis = 0>(w, ws, wz)
    c = Conv(d, v)
    y = Cast<to = 10>(c)
}"""


def graph() -> ModelProto:
    model = parse_model(GRAPH)
    for name, values in (("ws", np.arange(1, 7, dtype=np.float32)), ("w", np.ones((6, 4, 1, 1), np.int8))):
        kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
        model.graph.ClearField("initializer")
        model.graph.initializer.extend([*kept, numpy_helper.from_array(values, name)])
    return model


def test_the_steps_of_what_a_layer_reads_are_found_through_the_cast_behind_it() -> None:
    found = find_steps(graph())
    assert found.read == {"c": (("x", 0.5),), "y": (("x", 0.5),)}
    assert [*found.weights["y"]] == [1, 2, 3, 4, 5, 6]
    assert found.shifts == (64.0,)


def test_a_graph_without_grids_has_no_steps() -> None:
    plain = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], []))
    assert find_steps(plain).read == {} and find_steps(plain).shifts == ()


def test_rounding_noise_is_what_rounding_random_numbers_gives() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 200_000)
    step = 0.02
    found = np.sqrt(np.square(np.round(values / step) * step - values).mean())
    assert found == pytest.approx(rounding_noise(step), rel=0.01)


def test_clipping_noise_counts_what_lies_beyond_both_ends_alone() -> None:
    assert clipping_noise(np.array([127.0, -128.0]), 1.0) == 0
    assert clipping_noise(np.array([130.0, -129.0, 0.0, 0.0]), 1.0) == pytest.approx(math.sqrt((9 + 1) / 4))
