"""The whole way on a small trained-like network: steps measured, the best kept, options refused that make no sense."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from engineworks.calibration.lint import lint
from engineworks.calibration.placement import place
from engineworks.calibration.quantise import Destination, Measured, layer_noise, quantise
from engineworks.calibration.walk import run_all
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ExportError

RNG = np.random.default_rng(0)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def network() -> Any:
    """A stem, an inverted residual with a depthwise layer, and a classifier: the shape of EfficientNet-Lite."""
    nodes = [
        node("Conv", "x stem.w stem.b", "stem", pads=[1] * 4),
        node("Clip", "stem zero six", "r0"),
        node("Conv", "r0 up.w up.b", "up"),
        node("Clip", "up zero six", "r1"),
        node("Conv", "r1 deep.w deep.b", "deep", pads=[1] * 4, group=32),
        node("Clip", "deep zero six", "r2"),
        node("Conv", "r2 down.w down.b", "down"),
        node("Add", "down r0", "sum"),
        node("Relu", "sum", "r3"),
        node("GlobalAveragePool", "r3", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc.w fc.b", "scores", transB=1),
    ]
    shapes = {
        "stem": (16, 3, 3, 3),
        "up": (32, 16, 1, 1),
        "deep": (32, 1, 3, 3),
        "down": (16, 32, 1, 1),
        "fc": (10, 16),
    }
    stored = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    for name, shape in shapes.items():
        width = int(np.prod(shape[1:]))
        spread = np.exp(RNG.normal(0, 0.7, (shape[0], *[1] * (len(shape) - 1))))  # channels differ, as in real nets
        stored[f"{name}.w"] = (RNG.standard_normal(shape) * spread * np.sqrt(2 / width)).astype(np.float32)
        stored[f"{name}.b"] = RNG.normal(0.5, 0.5, shape[0]).astype(np.float32)
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])]
    ends = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", infos, ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def images(number: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (number, 3, 3, 3)).repeat(4, axis=2).repeat(4, axis=3)
    return [{"x": (coarse + rng.normal(0, 0.3, (number, 3, 12, 12))).astype(np.float32)}]


def measured(made: Any, batches: list[dict[str, Any]]) -> Measured:
    from onnx import ModelProto, ValueInfoProto

    scales, means = {}, {}
    for name in place(made).scale_of:
        shown = ModelProto()
        shown.CopyFrom(made)
        shown.graph.ClearField("output")
        shown.graph.output.append(ValueInfoProto(name=name))
        values = batches[0]["x"] if name == "x" else run_all(shown, batches)
        scales[name] = float(np.abs(values).max()) / 127
        means[name] = values.mean(axis=(0, *range(2, values.ndim)))
    return Measured({"minmax": scales, "half": {name: step / 2 for name, step in scales.items()}}, means)


MODEL = network()
CALIBRATION, OTHERS = images(40, 1), images(60, 2)
MEASURED = measured(MODEL, CALIBRATION)
EXACT = run_all(MODEL, OTHERS)


def decibels(made: Any) -> float:
    return sqnr(EXACT, run_all(made.model, OTHERS))


def test_fitting_layer_by_layer_is_better_than_correcting_biases_on_other_images() -> None:
    figures = [
        decibels(quantise(MODEL, CALIBRATION, MEASURED, quality=quality, fp16_share=0))
        for quality in ("fast", "normal", "high")
    ]
    assert min(figures[1:]) > figures[0] + 2  # of five layers one alone is padded: high has little to add here


def test_a_share_in_fp16_is_kept_to_and_helps() -> None:
    whole = quantise(MODEL, CALIBRATION, MEASURED, quality="normal", fp16_share=0)
    part = quantise(MODEL, CALIBRATION, MEASURED, quality="normal", fp16_share=0.3)
    assert whole.left_out == ()
    assert part.left_out
    assert 0 < part.fp16_share <= 0.3
    assert decibels(part) > decibels(whole)
    assert all(not one.quantised for one in part.decisions if one.node in part.left_out and one.role == "weight")


def test_the_graph_is_valid_clean_and_has_the_same_ends() -> None:
    made = quantise(MODEL, CALIBRATION, MEASURED, quality="high", fp16_share=0)
    checker.check_model(made.model, full_check=True)
    assert lint(made.model) == []
    assert [value.name for value in (*made.model.graph.input, *made.model.graph.output)] == ["x", "scores"]


def test_the_ranges_that_serve_the_network_are_chosen_and_every_step_is_told() -> None:
    made = quantise(MODEL, CALIBRATION, MEASURED, quality="fast")
    assert made.method == "minmax"
    assert [step.name for step in made.steps] == ["half ranges, biases corrected", "minmax ranges, biases corrected"]
    assert made.kept == made.steps[-1].name
    assert made.steps[1].sqnr_db > made.steps[0].sqnr_db
    assert quantise(MODEL, CALIBRATION, MEASURED, quality="fast", method="half").method == "half"


def test_the_same_images_give_the_same_graph() -> None:
    made = [
        quantise(MODEL, CALIBRATION, MEASURED, fp16_share=0).model.SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_few_images_cannot_be_held_out_and_that_is_noted() -> None:
    made = quantise(MODEL, [{"x": CALIBRATION[0]["x"][:2]}], MEASURED, quality="fast")
    assert made.notes == ("2 images: none could be held out of the fit.",)


def test_a_graph_of_a_fixed_batch_is_quantised_with_it() -> None:
    from onnx import ModelProto

    fixed = ModelProto()
    fixed.CopyFrom(MODEL)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    made = quantise(fixed, CALIBRATION, MEASURED, fp16_share=0.3)
    assert sqnr(run_all(MODEL, images(3, 7)), run_all(made.model, images(3, 7))) > 30
    with pytest.raises(ExportError, match="batch is fixed at 3, got 2 images for a part"):
        quantise(fixed, images(2, 1), MEASURED)


def test_corrections_that_do_harm_are_left_away_and_that_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.calibration.correct import Corrected, correct
    from engineworks.calibration.weights import Int8Layer

    def spoil(*arguments: Any, **options: Any) -> Corrected:
        found = correct(*arguments, **options)
        spoilt = {name: Int8Layer(one.values, one.scales * 0.5, one.bias) for name, one in found.layers.items()}
        return Corrected(spoilt, found.sqnr)

    monkeypatch.setattr("engineworks.calibration.quantise.correct", spoil)
    made = quantise(MODEL, CALIBRATION, MEASURED, fp16_share=0)
    assert made.kept == "minmax ranges, biases corrected"
    assert "the corrections lowered the SQNR to" in made.notes[0]


def test_progress_is_told_by_phase() -> None:
    told: list[tuple[str, int, int]] = []
    quantise(MODEL, CALIBRATION, MEASURED, fp16_share=0.3, on_progress=lambda *one: told.append(one))
    assert {phase for phase, _, _ in told} == {"ranges", "sensitivity", "layers"}
    assert all(0 <= done <= total for _, done, total in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, r"expected a quality of fast, normal, high and a share of 0 to 1, got 'best' and 0\.01"),
        ({"fp16_share": 2.0}, r"got 'normal' and 2\.0"),
        ({"fp16_share": ("stem", "gone")}, "no int8 layer of this network is called gone"),
        ({"method": "entropy"}, r"ranges 'entropy': expected auto or one of minmax, half"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        quantise(MODEL, CALIBRATION, MEASURED, **options)


def test_no_images_are_refused() -> None:
    with pytest.raises(ExportError, match="calibration: expected images, got none"):
        quantise(MODEL, [], MEASURED)


def test_a_network_that_int8_does_not_suit_is_refused() -> None:
    plain = network()
    del plain.graph.node[:]
    plain.graph.node.append(node("Flatten", "x", "scores"))
    with pytest.raises(ExportError, match="no layer of this network suits int8"):
        quantise(plain, CALIBRATION, MEASURED)


def turned() -> Any:
    """The network with a transposed convolution behind its stem, which doubles the picture."""
    made = network()
    weights = RNG.standard_normal((16, 16, 2, 2)).astype(np.float32) / 4
    made.graph.initializer.append(numpy_helper.from_array(weights, "turn.w"))
    made.graph.node[2].input[0] = "turn"
    made.graph.node[7].input[1] = "turn"
    made.graph.node.insert(2, node("ConvTranspose", "r0 turn.w", "turn", strides=[2, 2]))
    return made


@pytest.mark.parametrize("quality", ["fast", "normal", "high"])
@pytest.mark.parametrize(("flavour", "kept"), [("tensorrt", True), ("rtx", False)])
def test_a_transposed_convolution_is_int8_where_the_compiler_computes_it_so(
    quality: Any, flavour: Any, kept: bool
) -> None:
    made = turned()
    to = Destination(flavour=flavour)
    found = quantise(made, CALIBRATION, measured(made, CALIBRATION), quality=quality, fp16_share=0.1, to=to)
    int8 = {one.node for one in found.decisions if one.role == "weight" and one.quantised}
    assert ("turn" in int8) is kept and "down" in int8
    assert found.left_out == () or "turn" not in found.left_out or kept
    assert lint(found.model) == []
    noise = layer_noise(made, CALIBRATION, measured(made, CALIBRATION), "minmax", quality=quality, to=to)
    assert ("turn" in noise) is kept


@pytest.mark.parametrize("quality", ["fast", "normal", "high"])
def test_the_layers_named_are_left_out_and_no_others(quality: Any) -> None:
    made = quantise(MODEL, CALIBRATION, MEASURED, quality=quality, fp16_share=("scores", "stem"))
    assert made.left_out == ("stem", "scores")
    costs = {"stem": 144 * 16 * 27, "up": 144 * 32 * 16, "deep": 144 * 32 * 9, "down": 144 * 16 * 32, "scores": 160}
    assert made.fp16_share == pytest.approx((costs["stem"] + costs["scores"]) / sum(costs.values()))
    int8 = {one.node for one in made.decisions if one.role == "weight" and one.quantised}
    assert int8 == {"up", "deep", "down"}
    checker.check_model(made.model, full_check=True)
    assert lint(made.model) == []
    whole = quantise(MODEL, CALIBRATION, MEASURED, quality=quality, fp16_share=())
    assert whole.left_out == () and decibels(made) > decibels(whole)


@pytest.mark.parametrize("quality", ["fast", "normal"])
def test_the_noise_of_each_layer_alone_is_told_in_the_graphs_order(quality: Any) -> None:
    noise = layer_noise(MODEL, CALIBRATION, MEASURED, "minmax", quality=quality)
    assert list(noise) == ["stem", "up", "deep", "down", "scores"]
    quiet, *_, loud = sorted(noise, key=lambda name: noise[name])
    kept = [
        decibels(quantise(MODEL, CALIBRATION, MEASURED, method="minmax", quality=quality, fp16_share=(name,)))
        for name in (quiet, loud)
    ]
    assert kept[1] > kept[0], "leaving the loudest layer out helps more than leaving the quietest"
