"""The reader of ONNX's bytes says what the onnx package says, and refuses what is no model."""

import pytest

pytest.importorskip("onnx", reason="the graphs of these tests are written with onnx, which is not installed")

import math
from contextlib import suppress
from pathlib import Path

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engineworks.export.precision import realised
from engineworks.runtime.errors import BundleError
from engineworks.runtime.graph_layers import PRODUCTS, read_layers
from tests.test_engine import cnn, quantised

LENET = Path(__file__).parent / "data" / "lenet5-fp16" / "model.onnx"


@pytest.mark.parametrize("content", [cnn("fp32").SerializeToString(), quantised(), LENET.read_bytes()])
def test_nodes_are_those_that_the_onnx_package_reads(content: bytes) -> None:
    model = onnx.ModelProto.FromString(content)
    layers = read_layers(content)
    assert [(layer.name, layer.operator) for layer in layers] == [(n.name, n.op_type) for n in model.graph.node]
    modules = [next((p.value for p in n.metadata_props if p.key == "engineworks.module"), "") for n in model.graph.node]
    assert [layer.module for layer in layers] == modules


@pytest.mark.parametrize(
    "content", [*(cnn(kind).SerializeToString() for kind in ("fp32", "fp16", "bf16")), quantised()]
)
def test_the_types_asked_for_are_those_that_shape_inference_finds(content: bytes) -> None:
    counts: dict[str, int] = {}
    for layer in read_layers(content):
        if layer.operator in PRODUCTS:
            counts[layer.asked] = counts.get(layer.asked, 0) + 1
    assert counts == realised(onnx.ModelProto.FromString(content))


def test_weights_have_their_sizes_and_channels_through_dequantisation_and_transposition() -> None:
    layers = {layer.name: layer for layer in read_layers(quantised())}
    assert (layers["conv1"].weights, layers["conv1"].channels, layers["conv1"].asked) == ((16, 3, 3, 3), 16, "int8")
    assert (layers["fc"].weights, layers["fc"].channels, layers["fc"].asked) == ((16, 10), 10, "float16")
    assert layers["act1"].weights == () and layers["act1"].channels == 0


def test_a_cast_changes_the_type_from_there_on_and_a_nameless_node_is_named_as_tensorrt_does() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Cast", ["r"], ["h"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "h"], ["y"], "square"),
    ]
    ends = [value("x", TensorProto.FLOAT, [4, 4])], [value("y", TensorProto.FLOAT16, [4, 4])]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends))
    asked = [(layer.name, layer.asked) for layer in read_layers(model.SerializeToString())]
    assert asked == [("node_of_r", "float32"), ("cast", "float16"), ("square", "float16")]


@pytest.mark.parametrize("content", [b"", b"no model", bytes(100), LENET.read_bytes()[:2000], b"\x3a\xff"])
def test_what_is_no_whole_model_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="no ONNX model that can be read"):
        read_layers(content)


@given(st.integers(0, 3999), st.integers(0, 255))
def test_a_wrong_byte_is_read_or_refused(place: int, byte: int) -> None:
    content = bytearray(LENET.read_bytes())
    content[place] = byte
    with suppress(BundleError):
        assert all(math.prod(layer.weights) >= 0 for layer in read_layers(bytes(content)))
