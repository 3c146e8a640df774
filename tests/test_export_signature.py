"""Inputs are named after forward's parameters, outputs after what it returns; what has no name is refused."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engineworks.export.inputs import InputSpec, parse_shape
from engineworks.export.signature import named_inputs, named_outputs
from engineworks.runtime.errors import ExportError


def specs(*texts: str) -> tuple[InputSpec, ...]:
    return tuple(map(parse_shape, texts))


class One(nn.Module):
    def forward(self, picture: Tensor) -> Tensor:
        return picture


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class Optional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, *, scale: float = 1) -> Tensor:
        return x


class Positional(nn.Module):
    def forward(self, x: Tensor, /, y: Tensor) -> Tensor:
        return x + y


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


class Star(nn.Module):
    def forward(self, *pictures: Tensor, **others: Tensor) -> Tensor:
        return pictures[0]


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(1)


# --- inputs


def test_a_shape_without_a_name_is_the_first_parameters_and_is_called_input() -> None:
    assert named_inputs(One(), specs("3x8x8")) == (InputSpec("input", (3, 8, 8)),)
    assert named_inputs(Optional(), specs("4")) == (InputSpec("input", (4,)),)


def test_a_shape_with_a_name_keeps_it() -> None:
    assert named_inputs(One(), specs("picture:3x8x8:uint8")) == (InputSpec("picture", (3, 8, 8), "uint8"),)


def test_inputs_come_in_the_order_of_forward_however_they_are_given() -> None:
    assert named_inputs(Two(), specs("right:4", "left:3")) == specs("left:3", "right:4")
    assert named_inputs(Positional(), specs("y:4", "x:3")) == specs("x:3", "y:4")


def test_a_parameter_with_a_default_may_be_left_out_behind_those_given() -> None:
    assert named_inputs(Optional(), specs("mask:4", "x:3")) == specs("x:3", "mask:4")


@pytest.mark.parametrize(
    ("module", "shapes", "message"),
    [
        (Two(), ("3",), r"^Two\.forward also takes right\. Add --shape right:SIZES\.$"),
        (Two(), ("right:3",), r"also takes left\. Add --shape left:SIZES"),
        (Two(), ("left:3", "right:3", "up:3"), r"^--shape: forward takes left, right; got up\.$"),
        (Two(), ("left:3", "left:3"), "got a name twice"),
        (Two(), ("left:3", "3"), "got one without a name"),
        (Two(), ("3", "3"), "got one without a name"),
        (One(), ("image:3",), r"forward takes picture; got image\."),
        (Optional(), ("x:3", "bias:3"), r"takes mask before bias\. Add --shape mask:SIZES"),
        (Optional(), ("x:3", "scale:3"), r"forward takes x, mask, bias; got scale"),
        (Keyword(), ("x:3",), r"^Keyword\.forward needs scale by keyword\. Give it a default\.$"),
        (Star(), ("3",), r"^Star\.forward names no input: it takes \(\*pictures: .*\)\.$"),
        (Star(), ("pictures:3",), "names no input"),
        (Nothing(), ("3",), r"names no input: it takes \(\)\.$"),
    ],
)
def test_shapes_that_do_not_fit_forward_are_refused_with_the_mend(
    module: nn.Module, shapes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        named_inputs(module, specs(*shapes))


@given(st.permutations(["left:3", "right:4"]))
def test_the_order_on_the_command_line_never_matters(texts: list[str]) -> None:
    assert named_inputs(Two(), specs(*texts)) == specs("left:3", "right:4")


# --- outputs

Point = namedtuple("Point", "first second")
T = torch.zeros(5, 2)


@dataclass
class Record:
    scores: Tensor


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (T, ["output"]),
        ((T, T), ["output_0", "output_1"]),
        ([T, (T, T)], ["output_0", "output_1_0", "output_1_1"]),
        ({"a": T, "b": [T, {"c": T}]}, ["a", "b_0", "b_1_c"]),
        (OrderedDict(out=T, aux=T), ["out", "aux"]),
        (Point(T, T), ["first", "second"]),
        ((T, None), ["output_0"]),
        ({"a": None, "b": T}, ["b"]),
        ({1: T, "1": T, "x": T}, ["output_1", "output_1_out", "x"]),
        ({"": T, "a b/ü": T}, ["_", "a_b_ü"]),
        ({"x": T, "image": T}, ["x", "image_out"]),
        ({"a_b": T, "a": {"b": T}}, ["a_b", "a_b_out"]),
    ],
)
def test_outputs_are_named_by_keys_fields_and_places(result: Any, names: list[str]) -> None:
    found = named_outputs(result, 5, ("image",))
    assert list(found) == names
    assert all(value is T for value in found.values())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, r"^forward returns no tensor\.$"),
        ((), "forward returns no tensor"),
        ({"a": None}, "forward returns no tensor"),
        ((T, 3), r"forward returns a int \(output_1\), where only tensors"),
        ({"y": T, "name": "cat"}, r"forward returns a str \(name\)"),
        (Record(T), r"forward returns a Record \(output\)"),
        (T.sum(), r"output output: expected the batch as its first axis \(5 rows\), got \(\)"),
        ((T, T.t()), r"output output_1: expected the batch as its first axis \(5 rows\), got \(2, 5\)"),
        (T[:1], r"got \(1, 2\)"),
    ],
)
def test_what_is_no_tensor_with_the_batch_first_is_refused_by_its_place(result: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        named_outputs(result, 5, ("image",))


trees = st.recursive(
    st.just(T),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
def test_every_tensor_gets_a_name_of_its_own_and_none_is_an_inputs(tree: Any) -> None:
    from torch.utils._pytree import tree_leaves

    found = named_outputs(tree, 5, ("output", "_"))
    assert len(found) == len(tree_leaves(tree))
    assert not {"output", "_"} & set(found)
