"""The Q/DQ writer: numbers by hand, what stays, what is refused, and that TensorRT-RTX takes it."""

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper

from engineworks.calibration.graph import MODULE_KEY
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq, quantised_tensors
from engineworks.calibration.weights import Int8Layer
from engineworks.export.half import to_half
from engineworks.runtime.compare import agreement
from engineworks.runtime.errors import ExportError

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((16, 3, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(16).astype(np.float32)
X = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
Floats = npt.NDArray[np.float32]


def model(nodes: list[Any] | None = None, weights: list[Any] | None = None, opset: int = 20) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])
    made = [
        helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    made[0].metadata_props.add(key=MODULE_KEY, value="net.c")
    stored = [numpy_helper.from_array(WEIGHT, "c.weight"), numpy_helper.from_array(BIAS, "c.bias")]
    graph = helper.make_graph(nodes or made, "g", [x], [y], stored if weights is None else weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(made: Any, x: Floats = X) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def written(made: Any, scales: dict[str, float] | None = None, **options: Any) -> Any:
    found = insert_qdq(made, place(made), scales or {"x": 0.03}, **options)
    checker.check_model(found, full_check=True)
    return found


def stored(made: Any) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


def test_the_graph_is_q_dq_on_the_input_and_dq_on_int8_weights() -> None:
    made = written(model(), rest="fp32")
    assert [node.op_type for node in made.graph.node] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Relu",
    ]  # fmt: skip
    values = stored(made)
    assert values["c.weight_int8"].dtype == np.int8
    assert "c.weight" not in values
    assert values["c.bias"].dtype == np.float32
    assert values["x_scale"].shape == (), "of a vector of one TensorRT makes a float layer"
    assert all(
        not zero.any() and zero.dtype == np.int8 for name, zero in values.items() if name.startswith("int8_zero")
    )


def test_the_weights_are_the_steps_computed_by_hand() -> None:
    values = stored(written(model(), rest="fp32"))
    scale = np.abs(WEIGHT).max(axis=(1, 2, 3)) / np.float32(127)
    assert np.array_equal(values["c.weight_scale"], scale.astype(np.float32))
    assert np.array_equal(values["c.weight_int8"], np.rint(WEIGHT / scale[:, None, None, None]))


def test_the_answers_are_those_of_the_numbers_rounded_by_hand() -> None:
    made = written(model(), rest="fp32")
    values = stored(made)
    weights = values["c.weight_int8"] * values["c.weight_scale"][:, None, None, None]
    plain = model(
        weights=[
            numpy_helper.from_array(weights.astype(np.float32), "c.weight"),
            numpy_helper.from_array(BIAS, "c.bias"),
        ]
    )
    x = (np.clip(np.rint(X / np.float32(0.03)), -128, 127) * np.float32(0.03)).astype(np.float32)
    assert np.allclose(run(made), run(plain, x), rtol=0, atol=27 * 16 * 2.0**-23)  # sums of 27 products up to 16


def test_beside_fp16_every_scale_is_a_number_that_fp16_holds() -> None:
    values = stored(written(model(), {"x": 0.0312345}, rest="fp16"))
    for name in ("x_scale", "c.weight_scale"):
        assert np.array_equal(values[name], values[name].astype(np.float16).astype(np.float32))


def test_casting_the_rest_to_fp16_keeps_int8_and_scales_as_they_are() -> None:
    plain = written(model())
    half = to_half(plain, "fp16")
    checker.check_model(half, full_check=True)
    before, after = stored(plain), stored(half)
    assert after["x_scale"].dtype == np.float16
    for name, values in before.items():
        assert np.array_equal(values, after[name]) or name == "c.bias"
    assert agreement(run(plain), run(half)).sqnr_db > 40  # a step apart, where FP16 rounds over an edge


def test_the_module_names_stay_and_reach_q_and_dq() -> None:
    assert all(
        any(prop.key == MODULE_KEY and prop.value == "net.c" for prop in node.metadata_props)
        for node in written(model()).graph.node[:4]
    )


def test_weights_given_are_stored_as_they_are_with_their_bias() -> None:
    given = Int8Layer(np.ones(WEIGHT.shape, np.int8), np.full(16, 0.5, np.float32), np.arange(16, dtype=np.float32))
    values = stored(written(model(), weights={"conv": given}, rest="fp32"))
    assert (values["c.weight_int8"] == 1).all()
    assert np.array_equal(values["c.bias"], np.arange(16))


def test_a_layer_without_a_bias_gets_one_where_one_is_given() -> None:
    nodes = [helper.make_node("Conv", ["x", "c.weight"], ["y"], name="conv")]
    made = model(nodes, [numpy_helper.from_array(WEIGHT, "c.weight")])
    given = Int8Layer(np.zeros(WEIGHT.shape, np.int8), np.ones(16, np.float32), np.arange(16, dtype=np.float32))
    assert np.array_equal(run(written(made, weights={"conv": given}))[0, :, 0, 0], np.arange(16))


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = WEIGHT.copy()
    weight[3] = 0
    made = model(weights=[numpy_helper.from_array(weight, "c.weight"), numpy_helper.from_array(BIAS, "c.bias")])
    assert np.allclose(run(written(made, rest="fp32"))[:, 3], max(0.0, BIAS[3]), atol=1e-7)


def test_a_weight_shared_by_two_layers_is_stored_for_both() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["a"], name="one"),
        helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["b"], name="two"),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    made = written(model(nodes))
    assert [name for name in stored(made) if name.endswith("int8") or name.endswith("int8_2")] == [
        "c.weight_int8",
        "c.weight_int8_2",
    ]


def test_the_tensors_quantised_at_run_time_can_be_listed() -> None:
    assert dict(quantised_tensors(written(model(), rest="fp32"))) == {"x": pytest.approx(0.03)}


def test_the_graph_given_is_left_as_it_was() -> None:
    made = model()
    before = made.SerializeToString()
    written(made)
    assert made.SerializeToString() == before


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused_by_tensor(scale: float) -> None:
    with pytest.raises(ExportError, match=r"tensor x: expected a positive scale, got"):
        written(model(), {"x": scale})


def test_a_tensor_without_a_scale_is_named() -> None:
    with pytest.raises(ExportError, match=r"tensor x: no scale was given"):
        written(model(), {"other": 1.0})


def test_an_old_operator_set_is_refused_with_the_mend() -> None:
    with pytest.raises(ExportError, match=r"opset 18: expected 19 or later for int8 beside fp16\. Export with a later"):
        written(model(opset=18))
    written(model(opset=18), rest="fp32")


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    weight = WEIGHT.copy()
    weight[0, 0, 0, 0] = np.nan
    made = model(weights=[numpy_helper.from_array(weight, "c.weight"), numpy_helper.from_array(BIAS, "c.bias")])
    with pytest.raises(ExportError, match=r"weight c\.weight: holds values that are not finite"):
        written(made)


@given(scale=st.floats(1e-3, 1.0), factor=st.floats(0.01, 3.0))
def test_no_activation_is_further_than_half_a_step_from_itself_within_the_range(scale: float, factor: float) -> None:
    nodes = [helper.make_node("Conv", ["x", "c.weight"], ["y"], name="conv")]
    identity = np.zeros((16, 3, 1, 1), np.float32)
    identity[:3, :, 0, 0] = np.eye(3)
    made = insert_qdq(
        m := model(nodes, [numpy_helper.from_array(identity, "c.weight")]), place(m), {"x": scale}, rest="fp32"
    )
    x = np.clip(X * np.float32(factor), -127 * scale, 127 * scale).astype(np.float32)
    one = np.float32(1 / np.float32(127)) * 127  # what a weight of 1 is stored as
    assert np.abs(run(made, x)[:, :3] / one - x).max() <= scale * 0.5 * (1 + 1e-4)


# --- TensorRT-RTX ---

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@needs_rtx
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_tensorrt_rtx_computes_the_layer_in_int8(rest: Any) -> None:
    from engineworks.export.engine import compile_engine

    made = written(model(), rest=rest)
    typed = to_half(made, "fp16") if rest == "fp16" else made
    engine = compile_engine(typed.SerializeToString(), flavour="rtx", batch=(1, 2, 4), targets=("sm89",))
    assert engine.layer_types == {"convolution int8": 1}


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "int8"),
    [("lenet5", 3), ("resnet18", 21), ("googlenet-paper", 58), ("alexnet-paper", 8), ("vgg11", 11), ("plain18", 18)],
)
def test_tensorrt_rtx_builds_the_networks_of_the_lecture(name: str, int8: int) -> None:
    from engineworks.export.engine import compile_engine

    graph = exported(name)
    placement = place(graph)
    made = to_half(insert_qdq(graph, placement, dict.fromkeys(placement.activations, 0.05)), "fp16")
    batch = (1, 1, 2) if name == "vgg11" else (1, 2, 4)
    engine = compile_engine(made.SerializeToString(), flavour="rtx", batch=batch, targets=("sm89",))
    assert sum(count for kind, count in engine.layer_types.items() if kind.endswith("int8")) == int8
    assert {kind for kind in engine.layer_types if not kind.endswith("int8")} <= {"convolution fp16"}


def exported(name: str) -> onnx.ModelProto:
    from engineworks.export.apart import whole
    from engineworks.export.prove import export_graph
    from engineworks.export.recipe import Recipe
    from engineworks.models import find
    from engineworks.models.weights import build_network
    from engineworks.runtime.manifest import Batch

    shape = {"lenet5": (1, 32, 32), "alexnet-paper": (3, 227, 227)}.get(name, (3, 224, 224))
    inputs = {"image": RNG.standard_normal((2, *shape)).astype(np.float32)}
    recipe = Recipe(name, batch=Batch(1, 2, 4))
    made = export_graph(build_network(find(name)).eval(), inputs, ("scores",), recipe)
    graph: onnx.ModelProto = onnx.ModelProto.FromString(whole(made.graph, made.weights))
    return graph
