"""What FP16 cannot hold is refused by its layer; what comes near its ends is noted."""

import pytest
from onnx import helper

from engineworks.export.fp16_range import check_ranges
from engineworks.runtime.errors import ExportError

GRAPH = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "r")], "g", [], []))


def test_values_in_the_middle_of_the_range_are_no_matter() -> None:
    assert check_ranges(GRAPH, {"x": 1.0, "y": 65504 * 0.2, "zero": 0.0}) == ()


def test_a_value_beyond_the_range_is_refused_with_how_many_there_are() -> None:
    with pytest.raises(
        ExportError, match=r"FP16 overflows: y reaches 7e\+04 .* ends at 65504 \(2 such tensors\)\. Use --bf"
    ):
        check_ranges(GRAPH, {"x": 1.0, "y": 7e4, "z": 1e9})


def test_values_near_either_end_are_noted() -> None:
    small, large = check_ranges(GRAPH, {"x": 1e-8, "y": 65504 * 0.5})
    assert small.startswith("FP16 underflow: x stays below")
    assert large == "FP16 range: y reaches 3.28e+04 of 65504; larger inputs may overflow."
