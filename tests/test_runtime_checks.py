"""What an input must be is prepared once, and the glance of the fast path never lets a wrong one through."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime import InputError, Tensor
from engineworks.runtime.checks import checked, contract, named, plain_rows
from engineworks.runtime.manifest import Batch

FREE = (Tensor("x", "float32", ("batch", 2, 3)),)
FIXED = (Tensor("x", "float32", (4, 2, 3)),)
UINT8 = (Tensor("x", "uint8", ("batch", 4, 4, 3)),)
BATCH = Batch(2, 2, 4)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple) | st.sampled_from([(2, 2, 3), (4, 2, 3), (3, 2, 3)])


@given(SHAPES, st.sampled_from(["float32", "float64", ">f4", "uint8"]), st.booleans())
def test_what_passes_at_a_glance_passes_the_whole_check_and_is_handed_on_as_it_is(
    shape: tuple[int, ...], dtype: str, turned: bool
) -> None:
    array = np.zeros(shape, dtype)
    array = array.T.copy().T if turned else array
    rules = contract(FREE, BATCH)
    if rows := plain_rows(rules, array):
        arrays, again = checked(rules, {"x": array})
        assert arrays["x"] is array
        assert rows == again == shape[0]


@given(SHAPES, st.sampled_from(["float32", "float64"]))
def test_what_passes_is_contiguous_of_the_right_kind_and_size(shape: tuple[int, ...], dtype: str) -> None:
    try:
        arrays, rows = checked(contract(FREE, BATCH), {"x": np.zeros(shape, dtype)})
    except InputError:
        assert dtype != "float32" or shape[1:] != (2, 3) or not 2 <= shape[0] <= 4
        return
    assert (str(arrays["x"].dtype), arrays["x"].shape) == ("float32", (rows, 2, 3))
    assert arrays["x"].flags.c_contiguous


def test_nothing_is_taken_at_a_glance_where_nan_is_refused_or_the_batch_is_fixed() -> None:
    assert plain_rows(contract(FREE, BATCH), np.zeros((2, 2, 3), np.float32)) == 2
    assert plain_rows(contract(FREE, BATCH, nan="refuse"), np.zeros((2, 2, 3), np.float32)) == 0
    assert plain_rows(contract(FIXED, Batch(4, 4, 4)), np.zeros((4, 2, 3), np.float32)) == 0


def test_another_size_than_the_fixed_batch_is_mended_by_infer_batch() -> None:
    rules = contract(FIXED, Batch(4, 4, 4))
    assert checked(rules, {"x": np.zeros((4, 2, 3), np.float32)})[1] == 4
    with pytest.raises(InputError) as caught:
        checked(rules, {"x": np.zeros((1, 2, 3), np.float32)})
    assert str(caught.value) == (
        "input 'x': expected float32 (4, 2, 3), got float32 (1, 2, 3). This bundle has one batch size: infer_batch() "
        "takes any number of rows."
    )


@pytest.mark.parametrize(
    ("array", "mend"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), "Put the channels last: x.transpose(0, 2, 3, 1)."),
        (np.zeros((4, 4, 3), np.uint8), "Add a batch axis: x[None]."),
        (np.zeros((2, 4, 4, 3), np.float32), "Convert it: x.astype('uint8')."),
    ],
)
def test_pixels_for_a_graph_that_normalises_are_mended_as_pixels(array: Any, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(contract(UINT8, BATCH), {"x": array})
    assert str(caught.value).endswith(mend)


def test_inputs_of_other_types_are_checked_each_by_its_own() -> None:
    tensors = (Tensor("ids", "int64", ("batch", 5)), Tensor("mask", "bool", ("batch",)))
    given = {"ids": np.zeros((3, 5), np.int64), "mask": np.ones(3, bool)}
    assert checked(contract(tensors, BATCH), given)[1] == 3
    with pytest.raises(InputError, match=r"^input 'mask': expected bool \(N,\), got int64 \(3,\)\. Convert it"):
        checked(contract(tensors, BATCH), given | {"mask": np.ones(3, np.int64)})


def test_names_in_any_order_are_taken_and_others_refused() -> None:
    specs = contract((Tensor("a", "int8", ("n",)), Tensor("b", "int8", ("n",))), BATCH).specs
    assert named(specs, {"b": 1, "a": 2}) == {"a": 2, "b": 1}
    with pytest.raises(InputError, match=r"^infer: expected the inputs a, b, got a\.$"):
        named(specs, {"a": 1})
