"""The noise floor of a graph: every float tensor rounded to a half type, held against ONNX's reference evaluator."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engineworks.export.emulate import emulate
from engineworks.export.half import to_half
from engineworks.export.rounding import rounded_graph, with_rounding
from engineworks.runtime.backend import open_session

Floats = npt.NDArray[np.float32]
F = TensorProto.FLOAT


def model(
    nodes: list[Any], outputs: list[tuple[str, int]], stored: dict[str, npt.NDArray[Any]], width: int = 6, kind: int = F
) -> Any:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, ["n", width])],
            [helper.make_tensor_value_info(name, found, None) for name, found in outputs],
            [numpy_helper.from_array(array, name) for name, array in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def noise(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def half(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def test_inputs_weights_and_every_result_are_rounded_by_hand() -> None:
    w, b, x = noise(6, 4), noise(4, seed=1), noise(5, 6, seed=2)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])]
    (found,) = rounded_graph(model(nodes, [("y", F)], {"w": w, "b": b}))({"x": x}, "fp16")
    expected = half(half((half(x) @ half(w)).astype(np.float32)) + half(b))
    assert np.abs(found - expected).max() <= 2**-9  # sums of six in another order: at most one step of FP16 near 2
    assert (found == expected).mean() > 0.9


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_reference_evaluator_of_onnx_runs_the_same_graph(kind: Any) -> None:
    x = noise(5, 6)
    made = with_rounding(model([helper.make_node("Tanh", ["x"], ["y"])], [("y", F)], {}), kind)
    (expected,) = ReferenceEvaluator(made).run(None, {"x": x})
    (found,) = rounded_graph(model([helper.make_node("Tanh", ["x"], ["y"])], [("y", F)], {}))({"x": x}, kind)
    step = 2.0 ** (-10 if kind == "fp16" else -7)
    assert np.abs(found - expected).max() <= step  # two tanh may round to neighbours
    kept = (
        found.astype(np.float16).astype(np.float32)
        if kind == "fp16"
        else (found.view(np.uint32) & 0xFFFF0000).view(np.float32)
    )
    assert np.array_equal(found, kept), "what comes out is a value of the type"


def test_it_is_what_the_cast_graph_gives_where_sums_are_exact() -> None:
    """Written apart from ``half`` and ``emulate``, and of their opinion."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["t"]),
        helper.make_node("Relu", ["t"], ["u"]),
        helper.make_node("Add", ["u", "w"], ["y"]),
    ]
    plain, x = model(nodes, [("y", F)], {"w": noise(6, seed=3)}), noise(5, 6)
    kinds: tuple[Any, ...] = ("fp16", "bf16")
    for kind in kinds:
        (found,) = rounded_graph(plain)({"x": x}, kind)
        cast = emulate(to_half(plain, kind), kind)
        (expected,) = open_session(cast.SerializeToString(), "cpu").run({"x": x}, ["y"])
        assert np.array_equal(found, expected)


def test_integers_pass_and_their_results_with_them() -> None:
    nodes = [helper.make_node("Gather", ["e", "x"], ["y"]), helper.make_node("Add", ["x", "one"], ["z"])]
    made = model(
        nodes, [("y", F), ("z", TensorProto.INT64)], {"e": noise(9), "one": np.array(1)}, kind=TensorProto.INT64
    )
    x = np.array([[0, 1, 2, 3, 4, 8]])
    y, z = rounded_graph(made)({"x": x}, "fp16")
    assert np.array_equal(y, half(noise(9))[x])
    assert np.array_equal(z, x + 1)


def test_a_value_beyond_the_type_shows_as_infinite() -> None:
    made = model([helper.make_node("Mul", ["x", "k"], ["y"])], [("y", F)], {"k": np.float32(1e4).reshape(1)})
    (found,) = rounded_graph(made)({"x": np.full((1, 6), 10, np.float32)}, "fp16")
    assert np.isinf(found).all()


def test_the_sizes_of_a_resize_stay_exact_or_its_output_would_have_another() -> None:
    """3 × 1.3333334 is 4 pixels; in FP16 the factor is 1.333, and 3 pixels come out."""
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    made = model([node], [("y", F)], {"scales": np.array([1, 4 / 3 + 1e-7], np.float32)}, width=3)
    (found,) = rounded_graph(made)({"x": noise(2, 3)}, "fp16")
    assert found.shape == (2, 4)


def test_what_is_inside_control_flow_is_left_exact_and_runs() -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["x"], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", F, None)]
        )
        for kind in ("Neg", "Abs")
    ]
    node = helper.make_node("If", ["yes"], ["t"], then_branch=branches[0], else_branch=branches[1])
    made = model([node, helper.make_node("Relu", ["t"], ["y"])], [("y", F)], {"yes": np.array(True)})
    x = noise(2, 6)
    (found,) = rounded_graph(made)({"x": x}, "fp16")
    assert np.array_equal(found, half(np.maximum(-x, 0)))


def test_the_model_itself_is_left_as_it_is() -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"])], [("y", F)], {})
    before = made.SerializeToString()
    with_rounding(made, "fp16")
    assert made.SerializeToString() == before
