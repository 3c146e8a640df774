"""What plain_yaml writes, another library reads back as the same values."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.plain_yaml import dump

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(SCALARS | st.dictionaries(st.text(max_size=4), inner, min_size=1), max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=3))
def test_what_is_written_is_read_back_as_it_was(content: dict[str, Any]) -> None:
    assert yaml.safe_load(dump([content])) == content


@pytest.mark.parametrize(
    "text", ["yes", "No", "1", "0x1", "1e3", "2026-01-02", "a: b", "# a", "", "~", "é", "😀", "--x", "1:4"]
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert yaml.safe_load(dump([{"key": text, "list": [text]}])) == {"key": text, "list": [text]}


def test_documents_and_a_comment_stand_apart() -> None:
    text = dump([{"a": 1}, {"b": 2}], "one\ntwo")
    assert text == "# one\n# two\na: 1\n---\nb: 2\n"
    assert list(yaml.safe_load_all(text)) == [{"a": 1}, {"b": 2}]


def test_a_value_that_yaml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="plain_yaml: expected a string, a number, a list or a mapping"):
        dump([{"a": object()}])
