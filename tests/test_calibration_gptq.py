"""Rounding with moments: never worse on its own inputs than rounding to nearest, and mostly better."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.gptq import Moments, output_error, round_rows, windows
from engineworks.calibration.graph import Array
from engineworks.calibration.walk import run_all
from engineworks.calibration.weights import channel_scales, nearest

RNG = np.random.default_rng(0)


def correlated(groups: int, width: int, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, width, width)) / np.sqrt(width)
    common = rng.standard_normal((groups, count, 1)) * 2
    return np.asarray(rng.standard_normal((groups, count, width)) @ mixing + common, np.float32)


def moments(inputs: Array) -> Moments:
    found = Moments(*(inputs.shape[0], inputs.shape[2]))
    for part in np.array_split(inputs, 3, axis=1):
        found.add(part)
    return found


@settings(max_examples=25)
@given(seed=st.integers(0, 999), groups=st.integers(1, 4), width=st.integers(1, 90), count=st.integers(3, 60))
def test_the_outputs_of_no_channel_err_more_than_by_rounding_to_nearest(
    seed: int, groups: int, width: int, count: int
) -> None:
    inputs = correlated(groups, width, count, seed)
    rows = np.random.default_rng(seed).standard_normal((groups * 3, width)).astype(np.float32)
    scales = channel_scales(rows, "fp32")
    covariance = moments(inputs).covariance
    plain, made = nearest(rows, scales), round_rows(rows, scales, covariance)
    assert made.dtype == np.int8
    assert np.abs(made.astype(int)).max() <= 127

    def left(steps: Array) -> Array:
        change = (steps - rows / scales[:, None]).reshape(groups, 3, width)
        return np.asarray((change @ inputs.transpose(0, 2, 1)).var(axis=2).ravel())

    free = 1e-4 * left(plain) + 1e-9  # the moments were summed in float32
    assert (left(made) <= left(plain) + free).all()


def test_correlated_inputs_are_served_much_better() -> None:
    inputs = correlated(1, 64, 500, 1)
    rows = RNG.standard_normal((16, 64)).astype(np.float32)
    scales = channel_scales(rows, "fp32")
    covariance = moments(inputs).covariance
    errors = [
        output_error((steps - rows / scales[:, None])[None].astype(np.float64), covariance).sum()
        for steps in (nearest(rows, scales), round_rows(rows, scales, covariance))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_independent_inputs_are_rounded_to_nearest() -> None:
    rows = RNG.standard_normal((4, 10)).astype(np.float32)
    scales = channel_scales(rows, "fp32")
    assert np.array_equal(round_rows(rows, scales, np.eye(10)[None]), nearest(rows, scales))


def test_an_input_that_never_varies_breaks_nothing() -> None:
    rows = RNG.standard_normal((4, 10)).astype(np.float32)
    scales = channel_scales(rows, "fp32")
    made = round_rows(rows, scales, np.zeros((1, 10, 10)))
    assert np.array_equal(made, nearest(rows, scales))


def test_the_moments_are_numpys_covariance() -> None:
    inputs = correlated(2, 5, 40, 3) + 100
    found = moments(inputs).covariance
    for group in range(2):
        assert np.allclose(found[group], np.cov(inputs[group].T.astype(np.float64), bias=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("strides", "dilations", "pads"), [([1, 1], [1, 1], [0, 0, 0, 0]), ([2, 1], [1, 2], [1, 0, 2, 3])]
)
def test_windows_times_weights_are_a_convolution(
    groups: int, strides: list[int], dilations: list[int], pads: list[int]
) -> None:
    image = RNG.standard_normal((4, 9, 8)).astype(np.float32)
    weights = RNG.standard_normal((8, 4 // groups, 3, 2)).astype(np.float32)
    found = windows(image, [3, 2], pads, strides, dilations, groups=groups, most=10**6, seed=0)
    made = np.einsum("gpw,gow->gop", found, weights.reshape(groups, 8 // groups, -1)).reshape(8, -1)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, dilations=dilations, pads=pads, group=groups)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", "h", "w"]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert np.allclose(made, run_all(model, [{"x": image[None]}]).reshape(8, -1), atol=1e-5)


def test_no_more_windows_are_taken_than_asked_for_and_the_same_ones_each_time() -> None:
    image = RNG.standard_normal((2, 20, 20)).astype(np.float32)
    taken = [windows(image, [3, 3], [0] * 4, [1, 1], [1, 1], groups=1, most=50, seed=4) for _ in range(2)]
    assert taken[0].shape == (1, 50, 18)
    assert np.array_equal(taken[0], taken[1])
