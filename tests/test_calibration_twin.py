"""The CPU twin: ONNX Runtime fuses it into integer kernels, and it answers as the float network does."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from engineworks.calibration.lint import lint
from engineworks.calibration.observe import observe
from engineworks.calibration.twin import cpu_twin, saturates, twin_tensors
from engineworks.calibration.walk import run_all
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ExportError

RNG = np.random.default_rng(0)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def network() -> Any:
    nodes = [
        node("Conv", "x a.w a.b", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r b.w b.b", "b", pads=[1] * 4),
        node("Add", "b r", "sum"),
        node("Relu", "sum", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f c.w c.b", "y", transB=1),
    ]
    shapes = {"a.w": (16, 3, 3, 3), "a.b": (16,), "b.w": (16, 16, 3, 3), "b.b": (16,), "c.w": (10, 16), "c.b": (10,)}
    stored = {name: RNG.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", infos, ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


MODEL = network()
BATCHES = [{"x": RNG.standard_normal((4, 3, 12, 12)).astype(np.float32)} for _ in range(3)]


def ends_of(model: Any, batches: Any) -> dict[str, tuple[float, float]]:
    found = observe(model, twin_tensors(model), batches).tensors
    return {name: (values.minimum, values.maximum) for name, values in found.items()}


ENDS = ends_of(MODEL, BATCHES)


def test_only_what_does_not_follow_from_others_is_to_be_observed() -> None:
    assert twin_tensors(MODEL) == ("x", "r", "b", "s", "p", "y")  # not a, sum: their Relu's; not f: p's


def test_joined_and_pooled_values_take_the_ranges_of_what_they_are_made_of() -> None:
    nodes = [
        node("Conv", "x a.w", "a"),
        node("Conv", "x b.w", "b"),
        node("Concat", "a b", "both", axis=1),
        node("MaxPool", "both", "pooled", kernel_shape=[2, 2]),
        node("Conv", "pooled c.w", "y"),
    ]
    shapes = {"a.w": (4, 3, 1, 1), "b.w": (4, 3, 1, 1), "c.w": (4, 8, 1, 1)}
    stored = [numpy_helper.from_array(RNG.normal(0, 1, s).astype(np.float32), name) for name, s in shapes.items()]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, s, s]) for name, c, s in
             (("x", 3, 12), ("y", 4, 11))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert twin_tensors(model) == ("x", "a", "b", "y")
    batches = [{"x": BATCHES[0]["x"]}]
    made = cpu_twin(model, ends_of(model, batches))
    assert sqnr(run_all(model, batches), run_all(made, batches)) > 28  # as above


@pytest.mark.parametrize("reduced", [False, True])
def test_it_answers_as_the_float_network_does(reduced: bool) -> None:
    made = cpu_twin(MODEL, ENDS, reduced=reduced)
    checker.check_model(made)
    exact = run_all(MODEL, BATCHES)
    assert sqnr(exact, run_all(made, BATCHES)) > (22 if reduced else 28)  # measured 6 dB above; 7 bits cost up to 6


def test_onnx_runtime_makes_integer_kernels_of_it(tmp_path: Any) -> None:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that a graph fused for this machine fits no other
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(cpu_twin(MODEL, ENDS).SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [part.op_type for part in onnx.ModelProto.FromString((tmp_path / "fused.onnx").read_bytes()).graph.node]
    assert kinds.count("QLinearConv") == 2
    assert not {"Conv", "Relu", "Add"} & set(kinds)


def test_with_seven_bits_nothing_saturates_when_it_is_fused() -> None:
    made = cpu_twin(MODEL, ENDS, reduced=True)
    plain, fused = run_all(made, BATCHES), run_all(made, BATCHES, optimise="all")
    assert sqnr(plain, fused) > 25  # roundings in another order, no more


def test_the_probe_tells_whether_whole_weights_survive_being_fused_here() -> None:
    made = cpu_twin(MODEL, ENDS)
    plain, fused = run_all(made, BATCHES), run_all(made, BATCHES, optimise="all")
    assert saturates() == (sqnr(plain, fused) < 38)  # 36 dB where it saturates; else roundings in another order


def test_tensorrt_would_refuse_it_and_that_is_told() -> None:
    assert {"int32 bias", "integer type"} <= {
        one.rule for one in lint(cpu_twin(MODEL, ENDS)) if one.severity == "refuse"
    }


def test_a_tensor_without_a_range_is_named() -> None:
    with pytest.raises(ExportError, match=r"tensor x: no range was given\. Observe every tensor of twin_tensors"):
        cpu_twin(MODEL, {})


def test_biases_take_back_what_rounding_the_weights_adds_to_the_means() -> None:
    stored = {"w": RNG.normal(0, 1, (8, 32, 1, 1)).astype(np.float32), "b": np.zeros(8, np.float32)}
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in (("x", 32), ("y", 8))]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph([node("Conv", "x w b", "y")], "g", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    batches = [{"x": RNG.uniform(0, 4, (16, 32, 8, 8)).astype(np.float32)}]
    found = observe(model, twin_tensors(model), batches).tensors
    ends = {name: (values.minimum, values.maximum) for name, values in found.items()}
    means = {name: values.means for name, values in found.items()}
    exact, axes = run_all(model, batches), (0, 2, 3)
    plain, corrected = (
        np.abs((run_all(cpu_twin(model, ends, reduced=True, means=given), batches) - exact).mean(axes)).max()
        for given in ({}, means)
    )
    step = (ends["y"][1] - ends["y"][0]) / 255  # the outputs' own grid, whose error is none on average
    assert corrected < 0.25 * step < plain


def test_the_network_itself_is_left_as_it_was() -> None:
    before = MODEL.SerializeToString()
    cpu_twin(MODEL, ENDS, means={"x": np.zeros(3)})
    assert MODEL.SerializeToString() == before


def test_layers_that_are_left_out_stay_float32_with_their_own_biases() -> None:
    found = observe(MODEL, ("x", "r", "p"), BATCHES).tensors
    means = {name: np.asarray(values.means) for name, values in found.items()}
    made = cpu_twin(MODEL, ENDS, reduced=True, means=means, left_out=("a", "b", "y"))
    checker.check_model(made)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    plain = {tensor.name: numpy_helper.to_array(tensor) for tensor in MODEL.graph.initializer}
    for name, values in plain.items():
        assert np.array_equal(stored[name], values), name
    part = cpu_twin(MODEL, ENDS, reduced=True, means=means, left_out=("a",))
    exact = run_all(MODEL, BATCHES)
    whole = cpu_twin(MODEL, ENDS, reduced=True, means=means)
    assert sqnr(exact, run_all(part, BATCHES)) > sqnr(exact, run_all(whole, BATCHES))
