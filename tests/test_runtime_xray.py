"""An engine's kernels joined with its graph: what was asked, what was found, and how much of the work that is."""

import pytest

pytest.importorskip("onnx", reason="the graphs of these tests are written with onnx, which is not installed")

import importlib.util

from onnx import TensorProto, helper

from engineworks.export.count import multiply_adds
from engineworks.runtime.errors import BundleError, PlanError
from engineworks.runtime.xray import NOT_SEEN, look_into
from tests.test_engine import build, cnn, model, quantised, weights
from tests.written_plan import block, plan, small, statement, tensor

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def graph(dtype: int = TensorProto.FLOAT16) -> bytes:
    """What written_plan.small() was built from, if convolutions computed in ``dtype``."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], "cast_x", to=dtype),
        helper.make_node("Conv", ["c", "w"], ["r"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["r"], ["a"], "act"),
        helper.make_node("Gemm", ["a", "fw"], ["y"], "fc"),
    ]
    nodes[1].metadata_props.add(key="engineworks.module", value="stem.conv")
    constants = [weights("w", (16, 3, 3, 3), dtype), weights("fw", (16, 10), TensorProto.FLOAT16)]
    ends = [value("x", TensorProto.FLOAT, [4, 3, 8, 8])], [value("y", dtype, [4, 10])]
    return bytes(model(nodes, *ends, constants).SerializeToString())


def test_each_layer_has_its_module_types_kernel_and_multiply_adds_without_padding() -> None:
    found = look_into(small(), graph())
    conv, fc = found.layers
    assert (conv.name, conv.module, conv.asked, conv.found) == ("conv", "stem.conv", "float16", "float16")
    assert conv.multiply_adds == 4 * 64 * 16 * 3 * 9  # the kernel's own input has 4 channels
    assert (fc.kernel, fc.multiply_adds, fc.realised) == ("__myl_FcAdd", 640, True)
    assert found.unrealised() == () and found.share("float16") == 1.0
    cast, row, _ = found.rows
    assert (cast.found, row.found, row.asked, row.layers) == ("float32→float16", "float16", "float16", ("conv", "act"))
    assert (len(found.rows), found.bytes) == (3, sum(row.bytes for row in found.rows))


def test_a_layer_that_computes_in_another_type_is_not_realised_and_its_work_counts_for_that_type() -> None:
    found = look_into(small(weights="float32"), graph())
    (conv,) = found.unrealised()
    assert (conv.name, conv.asked, conv.found) == ("conv", "float16", "float32")
    whole = conv.multiply_adds + 640
    assert found.share("float32") == conv.multiply_adds / whole and found.share("float16") == 640 / whole


def test_a_layer_that_no_kernel_names_is_not_realised() -> None:
    x, r = tensor("x", "float16", 4, 3, 8, 8), tensor("r", "float16", 4, 16, 8, 8)
    alone = plan(block("x", [x, r], [statement("function", "__myl_Conv", "x", "r", "conv act")]))
    found = look_into(alone, graph())
    assert [layer.found for layer in found.unrealised()] == [NOT_SEEN, NOT_SEEN]
    assert found.share("float16") == 0.0 and found.rows[0].asked == ""


def test_layers_merged_into_one_kernel_share_it_by_their_weights() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Conv", ["x", f"w{n}"], [f"y{n}"], f"conv{n}") for n in (8, 24)]
    ends = [value("x", TensorProto.INT8, [2, 4, 5, 5])], [value(f"y{n}", TensorProto.INT8, None) for n in (8, 24)]
    both = model(nodes, *ends, [weights(f"w{n}", (n, 4, 1, 1), TensorProto.FLOAT16) for n in (8, 24)])
    tensors = [
        tensor("x", "float16", 2, 4, 5, 5),
        tensor("w", "float16", 32, 4, 1, 1),
        tensor("y", "float16", 2, 32, 5, 5),
    ]
    merged = plan(block("x", tensors, [statement("corrltn", "conv", "x w", "y", "conv8 conv24")]))
    assert [layer.multiply_adds for layer in look_into(merged, both.SerializeToString()).layers] == [1600, 4800]


def test_without_a_graph_the_types_are_known_and_not_what_was_asked() -> None:
    found = look_into(small())
    assert found.layers == () and [row.found for row in found.rows] == ["float32→float16", "float16", "float16"]
    assert {row.asked for row in found.rows} == {""}


def test_a_wrong_plan_and_a_wrong_graph_are_refused() -> None:
    with pytest.raises(PlanError, match="not readable"):
        look_into(b"none", graph())
    with pytest.raises(BundleError, match="no ONNX model"):
        look_into(small(), b"none")


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_real_engines_realise_what_was_asked_and_their_multiply_adds_are_the_graphs(precision: str) -> None:
    net = cnn(precision)
    found = look_into(build(net, targets=("sm86",)).plan, net.SerializeToString(), 8)
    assert found.unrealised() == () and len(found.layers) == 2
    assert sum(layer.multiply_adds for layer in found.layers) == multiply_adds(net, 8)


@rtx
def test_a_real_int8_layer_is_int8_on_ampere_and_half_on_turing(monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.export import engine

    monkeypatch.setattr(engine, "_FLOAT_ALONE", "none")  # else it is refused beforehand
    net = quantised()
    for target, kind in (("sm86", "int8"), ("sm75", "float16")):
        conv, fc = look_into(build(net, targets=(target,)).plan, net, 8).layers
        assert (conv.asked, conv.found, fc.asked, fc.found) == ("int8", kind, "float16", "float16")
