"""Kernels, types, multiply-adds and bytes of plans: counted by hand, and of real builds where the compiler is."""

import importlib.util
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.errors import PlanError
from engineworks.runtime.plan import Kernel, read_plan
from tests.written_plan import PRODUCT, block, plan, small, statement, tensor

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
SMALL = small()


def kernel_of(kind: str, left: tuple[int, ...], right: tuple[int, ...], made: tuple[int, ...]) -> Kernel:
    """The one kernel of a plan that holds one product."""
    tensors = [tensor("a", "int8", *left), tensor("b", "int8", *right), tensor("y", "float32", *made)]
    text = block("a", tensors, [statement(kind, "p", "a b", "y", "p", PRODUCT)])
    return read_plan(plan(text)).kernels[0]


def test_kernels_come_in_order_with_types_layers_products_and_bytes() -> None:
    found = read_plan(SMALL)
    assert (found.version, found.targets, found.batch) == ("1.7.1.116", ("sm86",), 4)
    cast, conv, fc = found.kernels
    assert (cast.kind, cast.name, cast.layers, cast.products) == ("function", "__myl_Cast", ("cast_x",), ())
    assert cast.bytes == 4 * 3 * 64 * 4 + 4 * 4 * 64 * 2  # the number n on the host crosses no memory
    assert conv.layers == ("conv", "act") and conv.products[0].computes_in == "float16"
    assert conv.products[0].multiply_adds == 4 * 16 * 64 * 4 * 9
    assert conv.bytes == 4 * 4 * 64 * 2 + 16 * 4 * 9 * 2 + 4 * 16 * 64 * 2
    assert (fc.kind, fc.products[0].kind, fc.products[0].multiply_adds) == ("runtime_fusion", "matrix product", 640)
    assert found.bytes == cast.bytes + conv.bytes + fc.bytes


def test_a_free_batch_is_read_for_the_rows_asked_for() -> None:
    free = small(batch="n")
    assert read_plan(free, 4).kernels == read_plan(SMALL).kernels
    assert read_plan(free, 8).kernels[1].products[0].multiply_adds == 2 * 147_456
    with pytest.raises(PlanError, match="pass --batch"):
        read_plan(free)


@pytest.mark.parametrize(
    ("kind", "left", "right", "made", "positions", "cost"),
    [
        ("corrltn", (2, 8, 5, 5), (6, 4, 3, 3), (2, 6, 5, 5), 50, 50 * 6 * 4 * 9),  # two groups
        ("deconvolution", (2, 8, 5, 5), (8, 6, 2, 2), (2, 6, 10, 10), 50, 50 * 8 * 6 * 4),
        ("fully_connected", (7, 20), (20, 30), (7, 30), 7, 7 * 20 * 30),
        ("fully_connected", (1, 30, 20), (7, 20, 9), (7, 30, 9), 63, 63 * 20 * 30),  # a 1×1 convolution: weights first
        ("fully_connected", (7, 5, 20), (1, 20, 30), (7, 5, 30), 35, 35 * 20 * 30),
    ],
)
def test_multiply_adds_of_every_kind_of_product(
    kind: str, left: tuple[int, ...], right: tuple[int, ...], made: tuple[int, ...], positions: int, cost: int
) -> None:
    (product,) = kernel_of(kind, left, right, made).products
    assert (product.positions, product.multiply_adds, product.computes_in) == (positions, cost, "int8")


def test_operands_of_two_types_are_both_named() -> None:
    tensors = [tensor("a", "float16", 1, 8), tensor("b", "int8", 8, 8), tensor("y", "float16", 1, 8)]
    found = read_plan(plan(block("a", tensors, [statement("fully_connected", "p", "a b", "y", "p", PRODUCT)])))
    assert found.kernels[0].products[0].computes_in == "float16×int8"


@pytest.mark.parametrize("version", [(1, 7, 1, 117), (1, 8, 0, 1), (1, 7, 0, 116), (11, 4, 0, 0)])
def test_a_plan_of_another_version_is_not_readable_though_its_text_would_be(version: tuple[int, int, int, int]) -> None:
    with pytest.raises(PlanError, match=rf"not readable: a plan of TensorRT-RTX {'.'.join(map(str, version))}; known"):
        read_plan(small(version=version))


@pytest.mark.parametrize("content", [b"", b"vtrt", b"PK" * 99, b"vtrt" + bytes(200), SMALL[:-5], SMALL + b"\0"])
def test_what_is_no_whole_plan_is_not_readable(content: bytes) -> None:
    with pytest.raises(PlanError, match="not readable"):
        read_plan(content)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (['  teleport={ name="t" stream=0 }'], "an unknown statement, teleport"),
        ([statement("function", "f", "a", "nowhere")], "does not describe its tensor nowhere"),
        ([statement("runtime_fusion", "f", "a", "a", "", "binary=3")], "lacks the text of its fused kernel 3"),
        ([statement("corrltn", "c", "a", "a")], "corrltn without two operands"),
        ([statement("fully_connected", "c", "a a", "a", "", "trA=true trB=false")], "with turned operands"),
    ],
)
def test_what_is_not_understood_is_refused_and_not_guessed(statements: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=f"not readable: .*{message}"):
        read_plan(plan(block("a", [tensor("a", "int8", 2, 2)], statements)))


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_a_plan_with_one_wrong_byte_is_read_or_refused(place: int, byte: int) -> None:
    content = bytearray(SMALL)
    content[place] = byte
    with suppress(PlanError):
        assert read_plan(bytes(content)).kernels


@rtx
@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_a_real_engine_computes_in_the_type_of_its_graph(precision: str, kind: str) -> None:
    from tests.test_engine import build, cnn

    found = read_plan(build(cnn(precision), targets=("sm86", "sm89")).plan, 8)
    products = [(kernel.layers, product) for kernel in found.kernels for product in kernel.products]
    assert (found.targets, found.batch) == (("sm86", "sm89"), 8)
    assert [product.computes_in for _, product in products] == [kind, kind]
    assert "conv1" in products[0][0] and "fc" in products[1][0]
    assert products[0][1].positions == 8 * 64 and products[1][1].multiply_adds == 8 * 16 * 10
