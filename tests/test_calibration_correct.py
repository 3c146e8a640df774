"""Layer by layer: no layer is worse after its fit, groups and layouts of every kind are followed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration import gptq
from engineworks.calibration.correct import Options, correct
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.walk import run_all
from engineworks.runtime.compare import sqnr


def two_layers(kind: str, shape: tuple[int, ...], attributes: Any, seed: int, bias: bool = True) -> Any:
    """A convolution, a ReLU, and the layer in question behind it."""
    rng = np.random.default_rng(seed)
    outputs = 32 if attributes.get("group") and kind == "ConvTranspose" else 16
    stored = {
        "first.w": rng.standard_normal((16, 3, 3, 3)) * np.exp(rng.normal(0, 1, (16, 1, 1, 1))),
        "first.b": rng.standard_normal(16),
        "w": rng.standard_normal(shape),
        "b": rng.standard_normal(outputs),
    }
    flat = kind in {"Gemm", "MatMul"}
    nodes = [
        helper.make_node("Conv", ["x", "first.w", "first.b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="r"),
        *[helper.make_node("GlobalAveragePool", ["r"], ["p"], name="p")] * flat,
        *[helper.make_node("Flatten", ["p"], ["f"], name="f")] * flat,
        helper.make_node(kind, ["f" if flat else "r", "w", *["b"] * bias], ["y"], name="layer", **attributes),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *["?"] * (1 if flat else 3)])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()][: 3 + bias],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


LAYERS: dict[str, tuple[str, tuple[int, ...], dict[str, Any], bool]] = {
    "Conv": ("Conv", (16, 16, 3, 3), {"pads": [1, 1, 1, 1]}, True),
    "Conv without a bias": ("Conv", (16, 16, 3, 3), {"strides": [2, 2]}, False),
    "depthwise": ("Conv", (16, 1, 3, 3), {"group": 16, "pads": [0, 1, 2, 1]}, True),
    "the data's size decides the padding": (
        "Conv",
        (16, 16, 3, 3),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        True,
    ),
    "ConvTranspose": ("ConvTranspose", (16, 16, 2, 2), {"strides": [2, 2]}, True),
    "ConvTranspose in groups": ("ConvTranspose", (16, 16, 3, 3), {"group": 2}, True),
    "Gemm": ("Gemm", (16, 16), {"transB": 1}, True),
    "Gemm with factors": ("Gemm", (16, 16), {"alpha": 0.5, "beta": 2.0}, True),
    "MatMul": ("MatMul", (16, 16), {}, False),
}
SCALES = {"x": 4 / 127, "r": 0.1, "f": 0.05}


def images(seed: int, number: int = 12) -> list[dict[str, Any]]:
    return [{"x": np.random.default_rng(seed).normal(0, 1, (number, 3, 8, 8)).astype(np.float32)}]


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("case", LAYERS)
def test_the_stored_graph_is_the_one_that_was_fitted_and_no_layer_is_worse(case: str, rounding: bool) -> None:
    kind, shape, attributes, bias = LAYERS[case]
    made = two_layers(kind, shape, attributes, 0, bias)
    placement, batches = place(made), images(1)
    assert len(placement.layers) == 2
    found = correct(made, placement, SCALES, batches, options=Options("fp32", rounding))
    assert all(after >= before - 1e-3 for before, after in found.sqnr.values())
    graph = insert_qdq(made, placement, SCALES, weights=found.layers, rest="fp32")
    exact, plain = run_all(made, batches), run_all(insert_qdq(made, placement, SCALES, rest="fp32"), batches)
    answers = sqnr(exact, run_all(graph, batches))
    # float32 sums in another order may carry a value over a step's edge
    assert answers == pytest.approx(found.sqnr["layer"][1], abs=0.05)
    assert answers > sqnr(exact, plain) - 0.05


@settings(max_examples=8)
@given(seed=st.integers(0, 99), case=st.sampled_from(["Conv", "depthwise", "Gemm"]))
def test_no_layers_sqnr_falls_for_any_weights(seed: int, case: str) -> None:
    kind, shape, attributes, bias = LAYERS[case]
    made = two_layers(kind, shape, attributes, seed, bias)
    found = correct(made, place(made), SCALES, images(seed, 4))
    assert all(after >= before - 1e-3 for before, after in found.sqnr.values())


def test_scales_that_will_be_fp16_are_so() -> None:
    made = two_layers(*LAYERS["Conv"][:3], 0)
    for one in correct(made, place(made), SCALES, images(1)).layers.values():
        assert np.array_equal(one.scales, one.scales.astype(np.float16).astype(np.float32))


def test_batches_of_any_size_count_alike() -> None:
    made = two_layers(*LAYERS["Conv"][:3], 0)
    whole = images(3)
    parts = [{"x": whole[0]["x"][start : start + 5]} for start in range(0, 12, 5)]
    first, second = (
        correct(made, place(made), SCALES, some, options=Options("fp32", False)) for some in (whole, parts)
    )
    for name, one in first.layers.items():
        assert np.allclose(one.scales, second.layers[name].scales, rtol=1e-4)


def test_progress_counts_layers() -> None:
    made, told = two_layers(*LAYERS["Conv"][:3], 0), []
    correct(made, place(made), SCALES, images(1), on_layer=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_a_product_of_very_many_inputs_keeps_no_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their square would fill the memory: 5 GB for the first Gemm of VGG."""
    made: list[int] = []

    class Watched(gptq.Moments):
        def __init__(self, groups: int, width: int) -> None:
            made.append(width)
            super().__init__(groups, width)

    monkeypatch.setattr("engineworks.calibration.gptq.Moments", Watched)
    width = gptq.WIDEST + 1
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((32, width)).astype(np.float32), "v": np.eye(16, 32, dtype=np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="h", transB=1),
        helper.make_node("Gemm", ["h", "v"], ["y"], name="y", transB=1),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c]) for n, c in (("x", width), ("y", 16))]
    graph = helper.make_graph(
        nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(value, name) for name, value in stored.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    batches = [{"x": rng.standard_normal((8, width)).astype(np.float32)}]
    correct(model, place(model), {"x": 0.05, "h": 2.0}, batches)
    assert made == [32]
