"""JSON of a request: read strictly, and refused in words that name the field."""

import pytest

pytest.importorskip("orjson")

from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.oip_json import check_size, flag_field, objects_field, read_object, text_field, whole_field


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": Infinity}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": [' + b"{}," * 5000 + b"1]}", "at most 4096 objects"),
        (b'{"a": [' + b"[]," * 70_000 + b"1]}", "65536 lists"),
        (b'{"a": [' + b'"x",' * 50_000 + b"1]}", "65536 quotes"),
        (b"[1]", "expected a JSON object, got a list"),
        (b"null", "got null"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"x": {"a" : 1, "a":2}}', "'a' stands twice"),
        (b'{"x": [{"a": 1}, 5, {"b": 1, "b": 2}]}', "'b' stands twice"),
        (b'{"x": [5, {"b": 1, "b": 2}]}', "'b' stands twice"),
        (b'{"x": "\\":", "b": 1, "b": 2}', "'b' stands twice"),
        (b'{"\\u0061": 1, "a": 2}', "'a' stands twice"),
    ],
)
def test_what_is_no_plain_object_is_refused_in_words(text: bytes, told: str) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        read_object(text)
    assert refused.value.status == 400


@pytest.mark.parametrize("depth", [600, 990, 1100, 200_000])
def test_deep_nesting_is_refused_and_never_eats_the_stack(depth: int) -> None:
    text = b'{"a":' * depth + b"1" + b"}" * depth
    with pytest.raises(Refusal, match=r"nested deeper|not JSON|at most") as refused:
        read_object(text)
    assert refused.value.status == 400


def test_a_name_in_a_string_or_with_blanks_is_no_second_name() -> None:
    assert read_object(b'{"a" : "x\\" : \\"a\\":", "b":{"a":[{"a":1},{"a":2}]}}')["b"]["a"][1] == {"a": 2}


@given(st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=12))  # fmt: skip  # noqa: E501
def test_what_pythons_own_writer_wrote_is_read_as_it_was(value: object) -> None:
    import json

    assert read_object(json.dumps({"x": value}).encode()) == {"x": value}


def test_fields_of_another_kind_are_named() -> None:
    with pytest.raises(Refusal, match="an input: expected a string 'name', got none"):
        text_field({}, "name", "an input")
    with pytest.raises(Refusal, match="expected 'n' to be a whole number of 0 or more, got True"):
        whole_field({"n": True}, "n", "x")
    with pytest.raises(Refusal, match="whole number"):
        whole_field({"n": 1.0}, "n", "x")
    with pytest.raises(Refusal, match="true or false, got a number"):
        flag_field({"n": 1}, "n", "x")
    with pytest.raises(Refusal, match="list of objects"):
        objects_field({"inputs": {"a": 1}}, "inputs", 4)
    with pytest.raises(Refusal, match="at most 4 'inputs', got 5"):
        objects_field({"inputs": [{}] * 5}, "inputs", 4)


def test_json_over_the_limit_is_told_to_go_binary() -> None:
    with pytest.raises(Refusal, match="binary_data_size") as refused:
        check_size(11, 10)
    assert refused.value.status == 413
