"""An engine's layers, as TensorRT's inspector tells them: read as counted by hand; what is not known is refused."""

import pytest

pytest.importorskip("onnx", reason="the graphs of these tests are written with onnx, which is not installed")

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.runtime.engine_layers import read_information
from engineworks.runtime.errors import PlanError
from engineworks.runtime.plan import Kernel, Plan
from engineworks.runtime.xray import NOT_SEEN, join
from tests.test_runtime_xray import graph
from tests.written_information import (
    GEMM,
    HALF,
    INT8,
    SINGLE,
    convolution,
    information,
    layer,
    network,
    product,
    tensor,
)


def read(layers: list[Any], *, major: int = 10) -> Plan:
    return read_information(information(layers, major=major), version="11.4.0.106", targets=("sm90",), batch=4)


def only(one: dict[str, Any]) -> Kernel:
    (kernel,) = read([one]).kernels
    return kernel


@pytest.mark.parametrize("major", [10, 11])
def test_kernels_have_their_layers_types_products_and_bytes(major: int) -> None:
    found = read(network(), major=major)
    assert (found.compiler, found.version, found.targets, found.batch) == ("TensorRT", "11.4.0.106", ("sm90",), 4)
    cast, conv, mean, fc = found.kernels
    assert [kernel.bytes for kernel in found.kernels] == [
        3072 + 1536,
        1536 + 8192 + 864 + 32,
        8192 + 128,
        128 + 80 + 320,
    ]
    assert (cast.layers, conv.layers, mean.layers, fc.layers) == (("cast_x",), ("conv", "act"), (), ("fc",))
    assert (cast.inputs[0].dtype, cast.outputs[0].dtype, cast.products) == ("float32", "float16", ())
    (convolved,), (multiplied,) = conv.products, fc.products
    assert (convolved.types, convolved.positions, convolved.multiply_adds) == (("float16",) * 2, 256, 256 * 432)
    assert (multiplied.types, multiplied.positions, multiplied.multiply_adds) == (("float16",) * 2, 4, 640)
    assert conv.name == "CaskConvolution sm80_xmma_fprop_implicit_gemm" and fc.name == f"gemm {GEMM}"


def test_an_engine_that_computes_as_asked_is_all_realised() -> None:
    found = join(read(network()), graph())
    assert found.compiler == "TensorRT" and found.unrealised() == ()
    assert found.share("float16") == 1.0 and [one.multiply_adds for one in found.layers] == [256 * 432, 640]
    assert found.rows[1].module == "stem.conv" and found.rows[0].found == "float32→float16"


def test_a_convolution_that_fell_back_to_another_type_is_found() -> None:
    (conv,) = join(read(network(words=SINGLE, weights="Float")), graph()).unrealised()
    assert (conv.name, conv.asked, conv.found) == ("conv", "float16", "float32")


@pytest.mark.parametrize(
    ("words", "weights", "computes_in"),
    [
        (INT8, "Int8", "int8"),
        (HALF, "Half", "float16"),
        ("Row major linear BFloat16 format", "BFloat16", "bfloat16"),
        (SINGLE, "Float", "float32"),
        (INT8, "Half", "int8×float16"),
    ],
)
def test_a_convolution_computes_in_the_types_of_its_input_and_weights(
    words: str, weights: str, computes_in: str
) -> None:
    assert only(convolution(words, weights, 4)).products[0].computes_in == computes_in


def test_a_convolution_with_a_pooling_behind_it_is_counted_before_the_pooling() -> None:
    one = convolution(HALF, "Half", 4) | {"LayerType": "CaskConvActPool"}
    one["Outputs"] = [tensor("r", HALF, 4, 16, 4, 4)]
    assert only(one).products[0].positions == 4 * 64
    assert only(one | {"Stride": [2, 2]}).products[0].positions == 4 * 16
    assert only(one | {"PaddingMode": "kSAME_UPPER"}).products == ()


def test_a_transposed_convolution_is_counted_by_its_input() -> None:
    one = convolution(HALF, "Half", 4) | {"ParameterType": "Deconvolution", "LayerType": "CaskDeconvolution"}
    one["Outputs"] = [tensor("r", HALF, 4, 16, 16, 16)]
    (found,) = only(one).products
    assert (found.kind, found.positions, found.multiply_adds) == ("deconvolution", 256, 256 * 432)


@pytest.mark.parametrize(
    "changed",
    [
        {"TacticName": "cublas_gemm"},
        {"TacticName": GEMM.replace("f16f16_f16f16", "i8i8_i8i32")},  # its name and its input do not agree
        {"TacticName": None},
        {"Outputs": [tensor("y", HALF, 4, 10), tensor("z", HALF, 4, 10)]},  # several products in one
        {"Inputs": [tensor("m", HALF, 16, 4)]},
        {"Inputs": [tensor("m", HALF, 4, 64, 9)], "Outputs": [tensor("y", HALF, 4, 64, 9)]},  # rows or columns?
        {"Inputs": [tensor("m", HALF, 4, 16), tensor("b", HALF, 4, 10)]},  # what is added, and no operand
        {"Inputs": [tensor("m", HALF, 16, 16), tensor("b", HALF, 16, 10)], "Outputs": [tensor("y", HALF, 16, 10)]},
    ],
)
def test_a_matrix_product_whose_operands_are_not_told_is_not_seen(changed: dict[str, Any]) -> None:
    layers = network()
    layers[-1] |= changed
    found = join(read(layers), graph())
    assert [(one.name, one.found) for one in found.unrealised()] == [("fc", NOT_SEEN)]


@pytest.mark.parametrize(
    "changed",
    [{"HasDynamicFilter": 1}, {"ConvXAsActInputIdx": 1}, {"Weights": {"Type": "Half", "Count": 0}}, {"Weights": None}],
)
def test_a_convolution_whose_weights_are_not_told_is_not_seen(changed: dict[str, Any]) -> None:
    assert only(convolution(HALF, "Half", 4, **changed)).products == ()


def test_two_operands_that_are_both_inputs_are_read() -> None:
    inputs = [tensor("a", HALF, 4, 8, 5, 7), tensor("b", HALF, 4, 8, 7, 3)]
    (found,) = only(product(4, Inputs=inputs, Outputs=[tensor("y", HALF, 4, 8, 5, 3)])).products
    assert (found.types, found.multiply_adds) == (("float16", "float16"), 4 * 8 * 5 * 7 * 3)


def test_weights_behind_a_flattening_are_as_large_as_what_they_multiply() -> None:
    one = product(4, Inputs=[tensor("m", HALF, 4, 16, 5, 5)], Outputs=[tensor("y", HALF, 4, 120, 1, 1)])
    assert only(one).products[0].multiply_adds == 4 * 400 * 120
    assert only(one).bytes == 2 * (4 * 400 + 4 * 120 + 400 * 120)


def test_a_value_on_the_host_moves_nothing() -> None:
    one = layer("cast", "kgen", [tensor("n", "Int64", 1, place="Host"), tensor("x", SINGLE, 4)], [tensor("y", HALF, 4)])
    assert only(one).bytes == 16 + 8


@pytest.mark.parametrize("separator", ["", "\x1e", "\x1f"])
def test_layers_are_told_with_any_separator_and_brackets_in_names(separator: str) -> None:
    one = layer("k", "kgen", [], [tensor("y", HALF, 4)])
    one["Metadata"] = separator.join(f"[ONNX Layer: {name}]" for name in ("a[0]/Conv", "b", "b"))
    assert only(one).layers == ("a[0]/Conv", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "gave no JSON"),
        ("[]", "gave no list of layers"),
        ('{"Layers": []}', "gave no list of layers"),
        ('{"Layers": ["conv + act"]}', "names alone. Build it with DETAILED verbosity"),
        ('{"Layers": [{"Name": "a"}]}', "a layer whose LayerType is not told"),
        ('{"Layers": [3]}', "a layer whose Name is not told"),
        (information([layer("a", "kgen", [tensor("x", HALF, 1)], [])]), "'a' of type kgen has no output"),
        (information([layer("a", "kgen", [], [tensor("x", HALF, -1)])]), r"a size of tensor 'x' is not told: \[-1\]"),
        (
            information([layer("a", "kgen", [], [tensor("x", "N/A due to dynamic shapes", 1)])]),
            "the type of 'x' is not told in a known way: 'N/A due to dynamic shapes'",
        ),
        (information([layer("a", "kgen", [], [tensor("x", "FP16 or FP32", 1)])]), "the type of 'x' is not told"),
        (information([layer("a", "kgen", [], [tensor("x", "FP4", 1)])]), "the type of 'x' is not told"),
        (information([layer("a", "kgen", [], [tensor("x", HALF, 1, place="Moon")])]), "in an unknown place"),
        (information([layer("a", "kgen", [], [{"Name": "x"}])]), "written in an unknown way"),
        (
            information([layer("a", "kgen", [], [tensor("x", HALF, 1) | {"Datatype": "Float"}])]),
            "the type of 'x' is not told in a known way: None",
        ),
    ],
)
def test_what_is_written_in_another_way_is_not_readable(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=f"^not readable: .*{message}"):
        read_information(text, version="12.0", targets=("sm90",), batch=4)


CHANGES = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.text(max_size=9), st.just([]), st.just([None]))


@settings(max_examples=800)
@given(st.data(), CHANGES)
def test_any_value_changed_is_read_or_refused_and_never_raises_otherwise(data: st.DataObject, value: Any) -> None:
    content = json.loads(information(network()))
    place: Any = content
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        found = read_information(json.dumps(content), version="11.4.0.106", targets=("sm90",), batch=4)
    except PlanError:
        return
    assert found.bytes >= 0
