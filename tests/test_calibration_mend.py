"""Mechanical mends: the graph is clean afterwards, and ONNX Runtime answers the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper

from engineworks.calibration.lint import lint
from engineworks.calibration.mend import fix

RNG = np.random.default_rng(1)
WEIGHT = RNG.standard_normal((16, 4, 3, 3)).astype(np.float32)
SCALES = (np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127).astype(np.float32)
X = RNG.standard_normal((2, 4, 8, 8)).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def stranger(zero: Any, weight_zero: Any, shape: tuple[int, ...] = (), constant: Any = 3) -> Any:
    """Write a layer as others do: float weights and a Q, an int32 bias, a quantised constant behind it."""
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("QuantizeLinear", "w sw zw", "wq", axis=0),
        node("DequantizeLinear", "wq sw zw", "wd", axis=0),
        node("DequantizeLinear", "b sb zb", "bd", axis=0),
        node("Conv", "xd wd bd", "c"),
        node("DequantizeLinear", "k s8 z8", "kd"),
        node("Mul", "c kd", "y"),
    ]
    stored = {
        "s": np.full(shape, 0.03, np.float32), "z": np.full(shape, zero), "w": WEIGHT, "sw": SCALES,
        "zw": np.full(16, weight_zero), "b": RNG.integers(-999, 999, 16).astype(np.int32),
        "sb": np.full(16, 0.003, np.float32), "zb": np.zeros(16, np.int32), "k": np.array(constant, np.int8),
        "s8": np.array(0.5, np.float32), "z8": np.array(0, np.int8),
    }  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])
    graph = helper.make_graph(
        nodes, "g", [x], [y], [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(made: Any, x: Any = X) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize(
    ("zero", "weight_zero"), [(np.int8(0), np.int8(0)), (np.uint8(128), np.uint8(128)), (np.uint8(128), np.int8(0))]
)
def test_what_can_be_mended_is_and_the_answers_are_the_same(
    zero: Any, weight_zero: Any, shape: tuple[int, ...]
) -> None:
    made = stranger(zero, weight_zero, shape)
    mended = fix(made)
    checker.check_model(mended.model, full_check=True)
    assert mended.left == ()
    assert {"int32 bias", "constant", "float weight"} <= {one.rule for one in mended.done}
    assert np.array_equal(run(made), run(mended.model))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), constant=st.integers(-128, 127))
def test_the_answers_are_the_same_for_any_input(seed: int, constant: int) -> None:
    made = stranger(np.uint8(128), np.uint8(128), constant=constant)
    x = np.random.default_rng(seed).normal(0, 5, (1, 4, 8, 8)).astype(np.float32)  # beyond the range, too
    assert np.array_equal(run(made, x), run(fix(made).model, x))


def test_weights_become_a_quarter_of_the_file() -> None:
    mended = fix(stranger(np.int8(0), np.int8(0))).model
    kinds = {tensor.name: tensor.data_type for tensor in mended.graph.initializer}
    assert kinds["w_int8"] == TensorProto.INT8
    assert "w" not in kinds
    assert [part.op_type for part in mended.graph.node].count("QuantizeLinear") == 1


def test_what_only_a_new_calibration_mends_is_left_and_told() -> None:
    mended = fix(stranger(np.uint8(0), np.int8(0)))
    assert {(one.severity, one.rule) for one in mended.left} == {("refuse", "integer type")}
    assert all(one.mend == "Calibrate again, symmetric and int8." for one in mended.left)


def test_a_clean_graph_is_left_alone() -> None:
    clean = fix(stranger(np.int8(0), np.int8(0))).model
    assert lint(clean) == []
    again = fix(clean)
    assert (again.done, again.model.SerializeToString()) == ((), clean.SerializeToString())
