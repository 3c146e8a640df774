"""The largest magnitude of every tensor, by hand and by the graph; and what FP16 cannot hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration import LARGEST_FP16, beyond_fp16, observe_ranges


def graph(nodes: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    made = helper.make_graph(nodes, "g", [x], outputs, list(weights))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def info(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


SMALL = graph(
    [
        helper.make_node("Gemm", ["x", "w", "b"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["positive"]),
        helper.make_node("Mul", ["positive", "positive"], ["squares"]),
        helper.make_node("ArgMax", ["squares"], ["winner"], axis=1),
        helper.make_node("ReduceSum", ["squares"], ["y"], keepdims=0),
    ],
    [info("y")],
    [
        numpy_helper.from_array(np.array([[1, 2], [3, -4]], np.float32), "w"),
        numpy_helper.from_array(np.array([0, 1], np.float32), "b"),
    ],
)


def test_the_maxima_are_those_computed_by_hand() -> None:
    # (1, 1)·w + b = (4, -1); (-2, 3)·w + b = (7, -15)
    got = observe_ranges(SMALL, {"x": np.array([[1, 1], [-2, 3]], np.float32)})
    assert got == {"sums": 15, "positive": 7, "squares": 49, "y": 65}
    assert list(got) == ["sums", "positive", "squares", "y"], "in the order of the graph's nodes"


@settings(max_examples=25)
@given(rows=st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), min_size=1, max_size=5))
def test_the_maxima_are_numpys_for_any_batch(rows: list[tuple[float, float]]) -> None:
    x = np.array(rows, np.float32)
    sums = x @ np.array([[1, 2], [3, -4]], np.float32) + np.array([0, 1], np.float32)
    got = observe_ranges(SMALL, {"x": x})
    scale = np.abs(x) @ np.array([[1, 2], [3, 4]], np.float32) + 1
    assert abs(got["sums"] - np.abs(sums).max()) <= 3 * 2**-24 * scale.max()


def test_tensors_of_which_the_graph_says_nothing_are_observed_all_the_same() -> None:
    assert "positive" in observe_ranges(SMALL, {"x": np.ones((1, 2), np.float32)})


def test_an_output_in_the_middle_is_observed_once() -> None:
    content = graph(
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["b"])],
        [info("b", "n", 2), info("a", "n", 2)],
    )
    assert observe_ranges(content, {"x": np.array([[0, -3]], np.float32)}) == {
        "a": 3,
        "b": pytest.approx(np.exp(3), rel=1e-6),
    }


def test_overflow_and_nan_count_as_beyond() -> None:
    content = graph(
        [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Sub", ["a", "a"], ["b"])], [info("b", "n", 2)]
    )
    got = observe_ranges(content, {"x": np.array([[1, 200]], np.float32)})
    assert got["a"] == np.inf
    assert np.isnan(got["b"])
    assert list(beyond_fp16(got)) == ["a", "b"]


def test_the_limit_itself_is_not_beyond() -> None:
    assert np.finfo(np.float16).max == LARGEST_FP16
    assert beyond_fp16({"edge": 65504.0, "over": 65504.1, "none": 0.0}) == {"over": 65504.1}


def test_an_empty_tensor_has_no_magnitude() -> None:
    content = graph([helper.make_node("Relu", ["x"], ["y"])], [info("y", "n", 2)])
    assert observe_ranges(content, {"x": np.zeros((0, 2), np.float32)}) == {"y": 0}


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 9])
def test_the_rows_may_be_run_a_few_at_once(at_once: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    whole, parts = observe_ranges(SMALL, {"x": x}), observe_ranges(SMALL, {"x": x}, at_once)
    # the sum runs over all rows of a part: it alone depends on how they are cut
    assert list(parts) == list(whole)
    assert {name: parts[name] for name in whole if name != "y"} == {
        name: pytest.approx(value, rel=1e-6) for name, value in whole.items() if name != "y"
    }


def test_a_nan_in_any_part_is_kept() -> None:
    x = np.array([[1, 1], [np.nan, 1], [1, 1]], np.float32)
    assert np.isnan(observe_ranges(SMALL, {"x": x}, 1)["sums"])
