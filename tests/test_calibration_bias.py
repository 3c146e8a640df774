"""Analytic bias correction: the means of a layer's outputs are the float layer's."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.bias import correct_biases
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.walk import run_all
from engineworks.runtime.errors import ExportError

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 4, (6, 16, 5, 5)).astype(np.float32)
FLAT = RNG.uniform(0, 4, (9, 32)).astype(np.float32)
CASES: dict[str, tuple[str, Any, tuple[int, ...], dict[str, Any]]] = {
    "Conv": ("Conv", X, (24, 16, 3, 3), {}),
    "Conv in groups": ("Conv", X, (32, 4, 3, 3), {"group": 4}),
    "ConvTranspose": ("ConvTranspose", X, (16, 24, 1, 1), {}),
    "ConvTranspose in groups": ("ConvTranspose", X, (16, 16, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "Gemm": ("Gemm", FLAT, (32, 24), {}),
    "Gemm, transposed": ("Gemm", FLAT, (24, 32), {"transB": 1}),
    "Gemm with factors": ("Gemm", FLAT, (24, 32), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
}


def model(kind: str, x: Any, shape: tuple[int, ...], attributes: Any, bias: bool = True) -> Any:
    weight = RNG.uniform(-1, 1, shape).astype(np.float32)
    outputs = 32 if attributes.get("group") else 24
    stored = [numpy_helper.from_array(weight, "w")]
    stored += [numpy_helper.from_array(RNG.standard_normal(outputs).astype(np.float32), "b")] * bias
    node = helper.make_node(kind, ["x", "w", *["b"] * bias], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *["?"] * (x.ndim - 1)])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", [name for name in CASES if name != "ConvTranspose in groups"])
def test_every_output_channel_has_the_mean_of_the_float_layer(case: str, bias: bool) -> None:
    kind, x, shape, attributes = CASES[case]
    made = model(kind, x, shape, attributes, bias)
    placement, scales = place(made), {"x": 4 / 127}
    means = {"x": x.mean(axis=(0, *range(2, x.ndim)))}
    exact = run_all(made, [{"x": x}])
    axes = (0, *range(2, exact.ndim))
    plain = run_all(insert_qdq(made, placement, scales, rest="fp32"), [{"x": x}])
    layers = correct_biases(made, placement, means, rest="fp32")
    mended = run_all(insert_qdq(made, placement, scales, weights=layers, rest="fp32"), [{"x": x}])
    before, after = (np.abs((values - exact).mean(axis=axes)).mean() for values in (plain, mended))
    # what is left comes from the inputs' own rounding, over nine rows only, and from windows that see not every place
    assert after < 0.5 * before


def test_groups_of_a_transposed_convolution_are_told_apart() -> None:
    kind, x, shape, attributes = CASES["ConvTranspose in groups"]
    made = model(kind, x, shape, attributes)
    layers = correct_biases(made, place(made), {"x": np.ones(16)}, rest="fp32")
    bias = layers["layer"].bias
    assert bias is not None and bias.shape == (32,)


def test_a_product_without_a_bias_is_rounded_alone() -> None:
    made = model("MatMul", FLAT, (32, 24), {}, bias=False)
    assert correct_biases(made, place(made), {"x": np.ones(32)})["layer"].bias is None


def test_missing_or_wrong_means_are_named() -> None:
    made = model(*CASES["Conv"])
    with pytest.raises(ExportError, match="tensor x: no channel means were given"):
        correct_biases(made, place(made), {})
    with pytest.raises(ExportError, match="tensor x: got 3 channel means, layer reads others"):
        correct_biases(made, place(made), {"x": np.ones(3)})
