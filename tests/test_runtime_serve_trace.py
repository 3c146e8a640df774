"""Request ids and trace context: only what is well formed is passed on."""

import pytest

from engineworks.runtime.serve_trace import request_id, trace_of

GOOD = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


def test_a_plain_id_is_kept_and_any_other_is_made_anew() -> None:
    assert request_id(b"abc-1.2:3") == b"abc-1.2:3"
    made = {request_id(given) for given in (None, b"", b"a b", b"x" * 200, b"a\nb", b'"')}
    assert len(made) == 6 and all(one.isascii() for one in made)


def test_a_trace_is_answered_with_a_span_of_our_own() -> None:
    found = trace_of(GOOD)
    assert found is not None and (found.trace_id, found.parent_id, found.flags) == ("a" * 32, "b" * 16, "01")
    assert found.response == b"00-" + b"a" * 32 + b"-" + found.span_id.encode() + b"-01"


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"",
        b"ff" + GOOD[2:],
        GOOD.replace(b"a", b"0"),
        GOOD.replace(b"b", b"0"),
        GOOD.upper(),
        GOOD + b"-more",
        GOOD[:-1],
        GOOD + b"-" + b"x" * 1000,
    ],
)
def test_what_the_standard_refuses_is_no_trace(given: bytes | None) -> None:
    assert trace_of(given) is None


def test_a_later_version_may_say_more() -> None:
    assert trace_of(b"01" + GOOD[2:] + b"-more") is not None
