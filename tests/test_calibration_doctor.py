"""What batch norms saw in training tells swapped, inverted, unscaled and blurred pictures; right ones pass.

The network is made up: two convolutions with oriented, colour-opponent and blurring filters; the statistics are those
of its "training" pictures. ``tests/bench/doctor_confusion.py`` asks trained networks and photographs.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engineworks.calibration.doctor import Expected, divergences, examine
from engineworks.calibration.observe import expose
from engineworks.calibration.pixels import levels, normal
from engineworks.runtime import InputError, Preprocessing, preprocess
from engineworks.runtime.errors import ExportError

Floats = npt.NDArray[np.float32]
NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RECIPE = Preprocessing("RGB", 48, "bilinear", (48, 48), 0, *NORM)
TENSORS = ("first", "second")


def network() -> ModelProto:
    generator = np.random.default_rng(5)
    first = generator.standard_normal((12, 3, 3, 3)).astype(np.float32)
    first[:8] -= first[:8].mean((2, 3), keepdims=True)  # edges of every kind; the others see colour and brightness
    second = generator.standard_normal((10, 12, 3, 3)).astype(np.float32)
    second[:5] -= second[:5].mean((2, 3), keepdims=True)
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["first"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["positive"]),
        helper.make_node("Conv", ["positive", "w2"], ["second"]),
    ]
    weights = [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 48, 48])
    out = helper.make_tensor_value_info("second", TensorProto.FLOAT, ["n", 10, 46, 46])
    return helper.make_model(
        helper.make_graph(nodes, "g", [image], [out], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def photographs(seed: int, count: int) -> Floats:
    """Noise of every octave over warm light from above: red is brighter than blue, as in most photographs."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        total = np.zeros((48, 48, 3))
        for side in (3, 6, 12, 24, 48):
            grain = generator.standard_normal((side, side, 1)) + 0.4 * generator.standard_normal((side, side, 3))
            total += np.kron(grain, np.ones((48 // side, 48 // side, 1))) / side**0.5
        light = np.linspace(150, 90, 48)[:, None, None] + np.array([20, 0, -25]) + generator.normal(0, 15)
        made.append((light + 25 * total).clip(0, 255).astype(np.uint8))
    return preprocess(made, RECIPE)


@pytest.fixture(scope="module")
def expected() -> Expected:
    """The mean and variance of each channel over 200 pictures: what a batch norm would have kept."""
    run = expose(network(), TENSORS)
    values = [run({"image": row[None]}) for row in photographs(1, 200)]
    stacked = [np.concatenate([value[i] for value in values]) for i in range(2)]
    return {name: (v.mean((0, 2, 3)), v.var((0, 2, 3))) for name, v in zip(TENSORS, stacked, strict=True)}


def blurred(x: Floats) -> Floats:
    """Average over 5 × 5 neighbours, as an enlarged thumbnail looks."""
    for axis in (2, 3):
        x = np.mean([np.roll(x, shift, axis) for shift in range(-2, 3)], axis=0, dtype=np.float32)
    return x


FAULTS: dict[str, Callable[[Floats], Floats]] = {
    "swapped-channels": lambda x: normal(levels(x, NORM)[:, ::-1], *NORM),
    "inverted": lambda x: normal(1 - levels(x, NORM), *NORM),
    "unlike": blurred,
    "unnormalised": lambda x: levels(x, NORM),
    "normalised-twice": lambda x: normal(x, *NORM),
    "unscaled": lambda x: levels(x, NORM) * 255,
}


def found(x: Floats, expected: Expected | None) -> list[str]:
    return [finding.fault for finding in examine([{"image": x}], RECIPE, model=network(), expected=expected)]


@pytest.mark.parametrize("seed", range(5))
def test_right_pictures_pass(seed: int, expected: Expected) -> None:
    assert found(photographs(100 + seed, 16), expected) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_fault_is_named(fault: str, seed: int, expected: Expected) -> None:
    assert found(np.ascontiguousarray(FAULTS[fault](photographs(200 + seed, 16)), np.float32), expected) == [fault]


@pytest.mark.parametrize("fault", ["swapped-channels", "inverted"])
def test_what_values_cannot_show_is_not_claimed_without_batch_norms(fault: str) -> None:
    assert found(np.ascontiguousarray(FAULTS[fault](photographs(9, 16))), None) == []


def test_a_network_that_wants_other_values_than_its_recipe_says_is_found_out(expected: Expected) -> None:
    wrong = Preprocessing("RGB", 48, "bilinear", (48, 48), 0, (0.5,) * 3, (0.5,) * 3)
    x = normal(levels(photographs(7, 16), NORM), *((0.5,) * 3, (0.5,) * 3))
    (finding,) = examine([{"image": x}], wrong, model=network(), expected=expected)
    assert finding.fault == "normalised-otherwise"
    assert "if instead of mean 0.5, 0.5, 0.5 and standard deviation 0.5, 0.5, 0.5, 0.485, 0.456" in finding.sentence


def test_the_sentence_says_how_much_the_mend_would_help(expected: Expected) -> None:
    x = FAULTS["swapped-channels"](photographs(8, 16))
    (finding,) = examine([{"image": x}], RECIPE, model=network(), expected=expected)
    assert "if their channels are swapped (RGB against BGR), it falls to" in finding.sentence


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    x = np.array([[[[0.0, 2.0]], [[3.0, 3.0]]]])  # means 1 and 3, variances 1 and 0
    same, dead = divergences([[x]], [([1, 3], [1, 0])])[0], divergences([[x]], [([0, 3], [4, 1e-9])])[0]
    assert same.tolist() == [0.0], "the channel without variance in training is left out"
    # ½ (1/4 + 1/4 - 1 - ln(1/4))
    assert dead == pytest.approx([0.5 * (-0.5 + np.log(4))])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "expected at least one image, got none"),
        ([{"a": np.zeros((1, 3, 4, 4), np.float32), "b": np.zeros(1)}], "expected one input of pictures, got a, b"),
        ([{"a": np.zeros((1, 4), np.float32)}], r"expected float32 \(n, 1 or 3, H, W\), got float32 \(1, 4\)"),
        ([{"a": np.zeros((1, 3, 4, 4))}], r"expected float32 .*, got float64 \(1, 3, 4, 4\)"),
        ([{"a": np.zeros((1, 3, n, 4), np.float32)} for n in (4, 5)], "expected images of one size"),
    ],
)
def test_what_is_no_picture_is_refused(rows: list[dict[str, Floats]], words: str) -> None:
    with pytest.raises(InputError, match=rf"^data doctor: {words}"):
        examine(rows, RECIPE)


def test_a_tensor_that_the_graph_does_not_have_is_refused() -> None:
    with pytest.raises(ExportError, match=r"no tensor 'absent'"):
        found(photographs(0, 2), {"absent": ([0.0], [1.0])})
