"""An engine that computes in less than was asked for is refused by the names of its layers; planted ones among them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.export import engine as engine_module
from engineworks.export.cli import main
from engineworks.export.engine import Engine
from engineworks.export.realised import check_engine
from engineworks.runtime import cuda
from engineworks.runtime.errors import ExportError
from engineworks.runtime.trt_runtime import absent
from tests.test_engine import build, cnn, model, quantised, weights
from tests.test_runtime_xray import graph
from tests.written_information import HALF, SINGLE, convolution, free, information, network
from tests.written_plan import block, plan, small, statement, tensor

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def engine(content: bytes) -> Engine:
    return Engine("rtx", "1.7.1.116", ("sm86",), {}, (1, 4, 8), content, 4, {}, True, (), 0.1)


def of_tensorrt() -> Engine:
    return Engine("tensorrt", "11.4.0.106", ("sm89",), {}, (1, 4, 8), b"plan", 4, {}, True, (), 0.1)


def test_an_engine_that_computes_as_asked_is_said_to() -> None:
    shown = check_engine(engine(small()), graph())
    assert (shown.words, shown.warning) == ("all 2 weighted layers as asked; multiply-adds: float16 100.0%", False)


def test_a_layer_in_another_type_is_an_error_that_names_it() -> None:
    with pytest.raises(
        ExportError, match=r"1 of 2 layers do not .* sm86 as asked: conv \(asked float16, found float32"
    ):
        check_engine(engine(small(weights="float32")), graph())


def test_more_layers_than_can_be_shown_are_counted() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "x"], [f"y{n}"], f"mm{n}") for n in range(7)]
    ends = [value("x", TensorProto.FLOAT16, [4, 4])], [value("y0", TensorProto.FLOAT16, [4, 4])]
    net = helper.make_model(helper.make_graph(nodes, "g", *ends)).SerializeToString()
    squares = [statement("fully_connected", f"mm{n}", "x x", "y", f"mm{n}", "trA=false trB=false") for n in range(7)]
    content = plan(block("x", [tensor("x", "float32", 4, 4), tensor("y", "float32", 4, 4)], squares))
    with pytest.raises(ExportError, match=r"7 of 7 layers .*mm4 \(asked float16, found float32\) and 2 more\."):
        check_engine(engine(content), net)


def test_a_layer_that_no_kernel_names_is_a_warning() -> None:
    x, y = tensor("x", "float16", 4, 3, 8, 8), tensor("y", "float16", 4, 10)
    shown = check_engine(engine(plan(block("x", [x, y], [statement("function", "all", "x", "y", "conv fc")]))), graph())
    assert shown.warning and "2 of 2 layers are seen in no kernel: conv (asked float16, found not seen)" in shown.words


def test_a_plan_that_is_not_readable_proves_nothing_and_that_is_said() -> None:
    shown = check_engine(engine(small(version=(1, 8, 0, 1))), graph())
    assert shown.warning and shown.words.startswith("not readable: a plan of TensorRT-RTX 1.8.0.1")


def test_an_engine_of_tensorrt_itself_is_held_against_its_graph_where_it_was_compiled(fake_host: Any) -> None:
    asked: list[int | None] = []

    def information(batch: int | None) -> str:
        asked.append(batch)
        return free(batch)

    fake_host.install("tensorrt-11.4", information=information)
    shown = check_engine(of_tensorrt(), graph())
    assert asked == [4]  # the usual batch
    assert (shown.words, shown.warning) == ("all 2 weighted layers as asked; multiply-adds: float16 100.0%", False)


def test_a_fallback_that_only_tensorrts_inspector_shows_is_an_error_that_names_the_layer(fake_host: Any) -> None:
    fell_back = information(network(words=SINGLE, weights="Float"), major=11)
    fake_host.install("tensorrt-11.4", information=lambda batch: fell_back)
    with pytest.raises(
        ExportError, match=r"1 of 2 layers do not .* sm89 as asked: conv \(asked float16, found float32"
    ):
        check_engine(of_tensorrt(), graph())


def test_int8_that_tensorrt_computes_in_half_is_caught(fake_host: Any) -> None:
    half = information([convolution(HALF, "Half", 4) | {"Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"}])
    fake_host.install("tensorrt-11.4", information=lambda batch: half)
    with pytest.raises(ExportError, match=r"conv1 \(asked int8, found float16\)"):
        check_engine(of_tensorrt(), quantised())


def test_what_tensorrts_inspector_does_not_tell_is_a_warning_and_no_proof(fake_host: Any) -> None:
    layers = network()
    layers[-1]["TacticName"] = "a kernel of cuBLAS"
    fake_host.install("tensorrt-11.4", information=lambda batch: information(layers))
    shown = check_engine(of_tensorrt(), graph())
    assert (shown.words, shown.warning) == (
        "1 of 2 layers are seen in no kernel: fc (asked float16, found not seen)",
        True,
    )
    fake_host.plan.information = lambda batch: '{"Layers": [{"Renamed": "conv"}]}'
    shown = check_engine(of_tensorrt(), graph())
    assert shown.warning and shown.words.startswith("not readable: a layer whose Name is not told")


def test_an_engine_of_tensorrt_is_not_readable_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu(None, "no NVIDIA driver"))
    shown = check_engine(of_tensorrt(), graph())
    assert shown.warning and shown.words.startswith("not readable here: TensorRT reads its own engines, on a GPU alone")


@rtx
@pytest.mark.parametrize("targets", [("sm75",), ("sm75", "sm86")], ids="+".join)
def test_int8_that_falls_back_on_turing_is_caught_by_the_plan_itself(
    monkeypatch: pytest.MonkeyPatch, targets: tuple[str, ...]
) -> None:
    monkeypatch.setattr(engine_module, "_FLOAT_ALONE", "none")  # the rule that refuses it beforehand, taken away
    with pytest.raises(ExportError, match=r"1 of 2 layers .* as asked: conv1 \(asked int8, found float16\)"):
        check_engine(build(quantised(), targets=targets), quantised())
    assert not check_engine(build(quantised(), targets=("sm86",)), quantised()).warning


def island(*, relu: bool) -> bytes:
    """cnn("fp16") whose convolution computes in float32, between a cast there and one back, before or behind a ReLU."""
    net = cnn("fp16")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in net.graph.node]
    last = nodes[1] if relu else nodes[0]
    nodes[0].input[:] = ["x32", "cw32", "cb32"]
    there = helper.make_node("Cast", ["x"], ["x32"], "there", to=TensorProto.FLOAT)
    back = helper.make_node("Cast", ["last32"], [last.output[0]], "back", to=TensorProto.FLOAT16)
    last.output[0] = "last32"
    place = 2 if relu else 1
    del net.graph.node[:]
    net.graph.node.extend([there, *nodes[:place], back, *nodes[place:]])
    shapes = {"cw32": (16, 3, 3, 3), "cb32": (16,)}
    net.graph.initializer.extend(weights(name, shape, TensorProto.FLOAT) for name, shape in shapes.items())
    return bytes(net.SerializeToString())


@rtx
def test_an_island_of_float32_is_found_in_an_engine_that_was_to_be_float16() -> None:
    planted = build(island(relu=True), targets=("sm86",))
    assert not check_engine(planted, island(relu=True)).warning  # as it was asked, so it is
    with pytest.raises(ExportError, match=r"1 of 2 layers .* as asked: conv1 \(asked float16, found float32\)"):
        check_engine(planted, cnn("fp16").SerializeToString())


@rtx
def test_a_float32_convolution_that_the_compiler_narrows_between_two_casts_is_caught() -> None:
    """TensorRT-RTX 1.7.1 makes cast, float32 convolution, cast one float16 convolution, weights and all, unasked."""
    engine = build(island(relu=False), targets=("sm86",))
    assert engine.layer_types == {"convolution fp32": 1, "matrix_multiply fp16": 1}  # what it says that it reads
    with pytest.raises(ExportError, match=r"1 of 2 layers .* as asked: conv1 \(asked float32, found float16\)"):
        check_engine(engine, island(relu=False))


def transposed() -> bytes:
    """One transposed convolution between Q and DQ."""
    value = helper.make_tensor_value_info
    constants: dict[str, Any] = {
        "xs": np.array(0.02, np.float16),
        "z": np.array(0, np.int8),
        "ws": np.full(32, 0.02, np.float16),
        "wz": np.zeros(32, np.int8),
        "wq": np.ones((16, 32, 2, 2), np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "xs", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], "w", axis=1),
        helper.make_node("ConvTranspose", ["d", "w"], ["y"], "up", strides=[2, 2]),
    ]
    ends = [value("x", TensorProto.FLOAT16, ["N", 16, 8, 8])], [value("y", TensorProto.FLOAT16, ["N", 32, 16, 16])]
    net = model(nodes, *ends, [numpy_helper.from_array(array, name) for name, array in constants.items()])
    return bytes(net.SerializeToString())


@rtx
def test_an_int8_transposed_convolution_that_falls_back_on_ampere_is_caught() -> None:
    with pytest.raises(ExportError, match=r"1 of 1 layers .* for sm86 as asked: up \(asked int8, found float16\)"):
        check_engine(build(transposed(), targets=("sm86",)), transposed())


@rtx
@pytest.mark.slow
def test_export_model_exits_1_and_names_the_layers_and_says_plan_where_it_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = f"{Path(__file__).parent.parent / 'examples' / 'calibration.py'}:digits"
    flags = ["lenet5", "--int8", "--calib-data", digits, "--calib-images", "32", "--no-cache", "--batch", "1:2:4"]
    assert main([*flags, "-o", str(tmp_path / "good")]) == 0
    assert "weighted layers as asked; multiply-adds: float16" in capsys.readouterr().err
    monkeypatch.setattr(engine_module, "_FLOAT_ALONE", "none")
    assert main([*flags, "--target", "sm75,sm86", "-o", str(tmp_path / "bad")]) == 1
    found = capsys.readouterr()
    assert "do not compute in the engine for sm75, sm86 as asked: node_" in found.err
    assert found.out == "" and not (tmp_path / "bad").exists()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_real_engine_of_tensorrt_shows_every_layer_as_asked(precision: str) -> None:
    """The first GPU to run this says whether its inspector tells what NVIDIA's documents and published outputs have."""
    if reason := cuda.probe_gpu().problem or absent("tensorrt"):
        pytest.skip(reason)
    graph = quantised() if precision == "int8" else cnn(precision).SerializeToString()
    shown = check_engine(build(graph, flavour="tensorrt"), graph)
    assert not shown.warning, shown.words
