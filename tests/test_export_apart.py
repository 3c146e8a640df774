"""Weights beside their graph: shared where they are PyTorch's own, and the same bytes once they are put back."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.export.apart import LARGE, is_reference, part, whole, without_references
from engineworks.export.half import half_weights, to_half
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError

SIDE = 512  # a square float32 matrix of this side is large
WEIGHT = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)


def model(weight: Any = WEIGHT, name: str = "w") -> Any:
    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE])

    nodes = [helper.make_node("MatMul", ["x", name], ["m"], name="a"), helper.make_node("Add", ["m", "b"], ["y"])]
    stored = [
        numpy_helper.from_array(np.ones(SIDE, np.float32), "b"),
        numpy_helper.from_array(weight, name),
        numpy_helper.from_array(np.arange(3), "unused"),
    ]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], stored, value_info=[info("m")])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="engineworks"
    )


def test_a_large_weight_lies_apart_and_a_small_one_stays() -> None:
    apart, weights = part(model(), {})
    assert WEIGHT.nbytes >= LARGE
    assert {tensor.name: is_reference(tensor) for tensor in apart.graph.initializer} == {
        "b": False, "w": True, "unused": False,
    }  # fmt: skip
    assert np.array_equal(weights["w"], WEIGHT)
    assert apart.ByteSize() < 10_000


def test_put_back_the_graph_is_the_same_byte_for_byte() -> None:
    assert whole(*part(model(), {})) == model().SerializeToString()


def test_memory_that_holds_the_same_bytes_is_shared() -> None:
    own = WEIGHT.copy()
    assert part(model(), {"w": own})[1]["w"] is own


@pytest.mark.parametrize(
    "other", [WEIGHT + 1, WEIGHT.T, WEIGHT.astype(np.float64), WEIGHT[:2], np.negative(WEIGHT * 0)]
)
def test_memory_that_holds_others_is_not(other: Any) -> None:
    stored = WEIGHT if other.any() else np.zeros_like(WEIGHT)  # the zeros of the last are negative
    weights = part(model(stored), {"w": other})[1]
    assert weights["w"] is not other
    assert weights["w"].tobytes() == stored.tobytes()


def test_onnx_checks_what_is_left() -> None:
    onnx.checker.check_model(without_references(part(model(), {})[0]), full_check=True)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_cast_graph_is_the_same_whether_its_weights_lay_apart_or_not(kind: Any) -> None:
    apart, weights = part(model(), {})
    typed = to_half(apart, kind)
    assert whole(typed, half_weights(typed, weights, kind)) == to_half(model(), kind).SerializeToString()


def test_a_weight_beyond_fp16_is_named_where_it_lies_apart() -> None:
    apart, weights = part(model(WEIGHT * np.float32(1e5)), {})
    with pytest.raises(ExportError, match=r"weight w: its largest magnitude .* is beyond fp16 \(65504\)"):
        half_weights(to_half(apart, "fp16"), weights, "fp16")


def test_a_weight_that_is_an_output_stays_inside() -> None:
    made = model()
    made.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [SIDE, SIDE]))
    assert part(made, {})[1] == {}


def test_onnx_runtime_reads_it_where_it_lies() -> None:
    apart, weights = part(model(), {})
    x = np.random.default_rng(1).standard_normal((4, SIDE)).astype(np.float32)
    inside = open_session(model().SerializeToString(), "cpu").run({"x": x}, ["y"])
    session = open_session(apart.SerializeToString(), "cpu", weights=weights)
    beside = session.run({"x": x}, ["y"])
    session.close()
    assert np.array_equal(inside[0], beside[0])
