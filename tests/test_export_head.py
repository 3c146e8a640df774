"""The head that takes pictures as they are does what ``normalise`` does, bit for bit, by ONNX's own reference too."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engineworks.export.half import to_half
from engineworks.export.head import Head, seen_before, with_head
from engineworks.export.inputs import InputSpec
from engineworks.runtime.backend import open_session
from engineworks.runtime.preprocessing import Preprocessing, normalise

EVERY = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)  # all 256 values in each of three channels


def recipe(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    return Preprocessing("RGB" if len(mean) == 3 else "L", None, "bilinear", None, 0, mean, std)


def graph(channels: int = 3, names: tuple[str, ...] = (), batch: str | int = "batch", used: str = "") -> Any:
    """Pass pictures through; ``names`` are stored values that are added to them, ``used`` is its nodes' common name."""
    picture: list[str | int] = [batch, channels, 16, 16]
    nodes, last = [], "image"
    for number, name in enumerate(names):
        nodes.append(helper.make_node("Add", [last, name], [f"t{number}"], name=used and f"{used}{number}"))
        last = f"t{number}"
    nodes.append(helper.make_node("Identity", [last], ["y"], name="node_image_float"))
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, picture)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, picture)],
            [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in names],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: Any, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    (answer,) = open_session(model.SerializeToString(), "cpu").run({"image": pixels}, ["y"])
    return answer


numbers = st.floats(-3, 3)
spreads = st.floats(1e-3, 300) | st.floats(-300, -1e-3)


@settings(max_examples=25)
@given(st.tuples(numbers, numbers, numbers), st.tuples(spreads, spreads, spreads))
def test_a_graph_normalises_as_numpy_does_bit_for_bit(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    made, expected = with_head(graph(), Head(recipe(mean, std))), normalise(EVERY, recipe(mean, std))
    assert np.array_equal(run(made, EVERY), expected)


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5,)])
def test_the_reference_evaluator_of_onnx_agrees(mean: tuple[float, ...]) -> None:
    pixels = EVERY[..., : len(mean)]
    head = Head(recipe(mean, (0.229,) * len(mean)))
    made = with_head(graph(len(mean)), head)
    onnx.checker.check_model(made, full_check=True)
    (found,) = ReferenceEvaluator(made).run(None, {"image": pixels})
    assert np.array_equal(found, head.behind({"image": pixels})["image"])


def test_the_input_keeps_its_name_and_its_batch_and_takes_channels_last() -> None:
    for batch in ("batch", 5):
        (picture,) = with_head(graph(batch=batch), Head(recipe((0.5,) * 3, (0.5,) * 3))).graph.input
        kind = picture.type.tensor_type
        assert (picture.name, kind.elem_type) == ("image", TensorProto.UINT8)
        assert [axis.dim_param or axis.dim_value for axis in kind.shape.dim] == [batch, 16, 16, 3]


def test_the_cast_comes_first_for_the_compiler_transposes_no_bytes() -> None:
    made = with_head(graph(), Head(recipe((0.5,) * 3, (0.5,) * 3)))
    assert [node.op_type for node in made.graph.node] == ["Cast", "Transpose", "Div", "Sub", "Div", "Identity"]


def test_the_head_stays_float32_before_a_half_precision_graph() -> None:
    head = Head(recipe((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    made = with_head(to_half(graph(names=("bias",)), "fp16"), head)
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert {kinds[f"image_{name}"] for name in ("scale", "mean", "std")} == {TensorProto.FLOAT}
    expected = normalise(EVERY, head.preprocessing).astype(np.float16).astype(np.float32)
    assert np.array_equal(run(made, EVERY), expected), "rounded once, after everything"


def test_the_model_itself_is_left_as_it_is() -> None:
    model = graph()
    before = model.SerializeToString()
    with_head(model, Head(recipe((0.5,) * 3, (0.5,) * 3)))
    assert model.SerializeToString() == before
    assert with_head(model, None) is model


def test_names_that_the_graph_has_already_are_not_taken_again() -> None:
    """``image_mean`` is what exporters call a buffer; two values of one name are no graph."""
    taken = ("image_mean", "image_std", "image_scale", "image_normalised", "image_float", "image_unit")
    made = with_head(graph(names=taken, used="node_image_first"), Head(recipe((0.5,) * 3, (0.25,) * 3)))
    onnx.checker.check_model(made, full_check=True)
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == len(names)
    assert np.array_equal(run(made, EVERY), normalise(EVERY, recipe((0.5,) * 3, (0.25,) * 3)))


def test_a_graph_inside_a_node_sees_the_normalised_picture() -> None:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["image"], ["inner"])], "b", [], [value])
    model = graph()
    model.graph.ClearField("node")
    model.graph.node.append(helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    plain = recipe((0.5,) * 3, (0.25,) * 3)
    assert np.array_equal(run(with_head(model, Head(plain)), EVERY), normalise(EVERY, plain))


def test_what_stands_before_the_head_is_the_picture_itself() -> None:
    assert seen_before(InputSpec("x", (3, 8, 9))) == InputSpec("x", (8, 9, 3), "uint8")
