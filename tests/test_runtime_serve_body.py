"""Bodies: within their size, their time and their compression."""

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.serve_body import Gone, deflate, inflate, read_body
from engineworks.runtime.serve_limits import Budget, Limits, Share

LIMITS = Limits(body=1000, body_seconds=0.05)


def share() -> Share:
    return Share(Budget(5000))


def read(*parts: bytes | None, length: bytes | None = None, last: bool = True) -> bytes:
    """Read a body of these parts; None is a client that goes away, and without the last one it never ends."""
    left = list(parts)

    async def receive() -> Any:
        if not left:
            await asyncio.sleep(10)
        part = left.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(left) or not last}

    headers = {} if length is None else {b"content-length": length}
    return asyncio.run(read_body(receive, headers, LIMITS, share()))


def test_parts_are_put_together() -> None:
    assert read(b"ab") == b"ab" and read(b"a", b"", b"b") == b"ab"


@pytest.mark.parametrize(
    ("parts", "length", "status"),
    [((b"x" * 1001,), None, 413), ((b"x" * 900, b"x" * 101), None, 413), ((b"",), b"1001", 413), ((b"",), b"-1", 413)],
)
def test_too_much_is_refused(parts: tuple[bytes, ...], length: bytes | None, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        read(*parts, length=length)
    assert refused.value.status == status


def test_a_body_that_does_not_end_in_time_is_refused_and_one_that_breaks_off_is_gone() -> None:
    with pytest.raises(Refusal, match=r"within 0\.05 s") as refused:
        read(b"x", last=False)
    assert refused.value.status == 408
    for parts in ((None,), (b"x", None)):
        with pytest.raises(Gone):
            read(*parts)


@given(st.binary(max_size=1000), st.sampled_from([b"gzip", b"deflate", b" GZIP "]))
def test_what_was_compressed_comes_out_whole(content: bytes, encoding: bytes) -> None:
    packed = gzip.compress(content) if b"z" in encoding.lower() else zlib.compress(content)
    assert inflate(packed, encoding, LIMITS, share()) == content


@given(st.binary(max_size=300))
def test_anything_else_is_refused_as_the_clients_fault(content: bytes) -> None:
    try:
        inflate(content, b"deflate", LIMITS, share())
    except Refusal as refused:
        status = refused.status
    else:
        status = 200
    assert status in {200, 400, 413}


def test_a_bomb_is_stopped_at_the_limit() -> None:
    with pytest.raises(Refusal) as refused:
        inflate(gzip.compress(bytes(100_000)), b"gzip", LIMITS, share())
    assert refused.value.status == 413


def test_answers_are_compressed_where_the_client_takes_that() -> None:
    assert deflate(b"x" * 99, b"br, gzip;q=0.5")[1] == b"gzip"
    assert zlib.decompress(deflate(b"x" * 99, b"deflate")[0]) == b"x" * 99
    assert deflate(b"x", b"gzip;q=0, br") == (b"x", None)
