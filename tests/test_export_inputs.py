"""What a person writes after --shape, read; and written as it is read."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engineworks.export.inputs import DTYPES, InputSpec, parse_shape


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("3x224x224", InputSpec("", (3, 224, 224))),
        ("Nx3x8x9", InputSpec("", (3, 8, 9))),
        ("nx16", InputSpec("", (16,))),
        ("N", InputSpec("", ())),
        ("name:1x16", InputSpec("name", (1, 16))),
        ("ids:12:int64", InputSpec("ids", (12,), "int64")),
        ("ids:N:int64", InputSpec("ids", (), "int64")),
        ("8x8x3:uint8", InputSpec("", (8, 8, 3), "uint8")),
        ("003x4", InputSpec("", (3, 4))),
        ("input:0:6", InputSpec("input:0", (6,))),
        ("input:0:6:bool", InputSpec("input:0", (6,), "bool")),
        ("495:3x4", InputSpec("495", (3, 4))),
        ("图 像/é:3", InputSpec("图 像/é", (3,))),
    ],
)
def test_a_shape_is_sizes_of_one_row_with_a_name_and_a_dtype_where_they_matter(text: str, spec: InputSpec) -> None:
    assert parse_shape(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "x", "3x", "x3", "3xx4", "3X4", "3,4", "3 x4", "-3", "3.0", "0", "3x0", "a:", "a:x", ":3", "3:", "1_0",
        " a:3", "a:3:", "a:3:float", "3:float16", "3:float64", "3:FLOAT32", "NxN", "3xN", "٣", "3x٣", "a:²", "\n:3",
        "a\nb:3",
        "2147483648", "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_shape_says_so_with_what_was_given(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_shape(text)
    assert repr(text) in str(caught.value)


def test_the_dtypes_that_are_taken_are_listed_with_one_that_is_not() -> None:
    with pytest.raises(
        ValueError, match="expected a dtype of float32, uint8, int8, int32, int64, bool; got 'a:3:float16'"
    ):
        parse_shape("a:3:float16")


names = st.text("aNx_09.:/-é图", min_size=1, max_size=12)
sizes = st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=5).map(tuple)


@given(names, sizes, st.sampled_from(DTYPES))
@example("a:3:int8", (4,), "float32")
@example("N", (1,), "bool")
def test_a_shape_that_is_written_is_read_back(name: str, shape: tuple[int, ...], dtype: str) -> None:
    text = f"{name}:{'x'.join(map(str, shape))}:{dtype}"
    assert parse_shape(text) == InputSpec(name, shape, dtype)


@given(sizes)
def test_a_leading_n_says_nothing_more(shape: tuple[int, ...]) -> None:
    text = "x".join(map(str, shape))
    assert parse_shape(f"Nx{text}") == parse_shape(text) == InputSpec("", shape)


@given(st.text(max_size=20) | st.from_regex(r"[a-z0-9xN: .\-]{0,14}", fullmatch=True))
def test_junk_raises_nothing_but_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        found = parse_shape(text)
        assert found.dtype in DTYPES
        assert all(1 <= size < 2**31 for size in found.shape)


def test_an_input_is_shown_with_a_free_batch() -> None:
    assert str(InputSpec("ids", (12,), "int64")) == "ids int64 (N, 12)"
    assert str(InputSpec("", ())) == "input float32 (N)"
