"""The body of a request: read within its limits of size and time, and inflated within them too."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from engineworks.runtime.oip_errors import Refusal, bad
from engineworks.runtime.serve_limits import Limits, Share

Receive = Callable[[], Awaitable[Any]]
_STEP = 1 << 20
_WINDOWS = {b"gzip": 31, b"deflate": 15}  # zlib's window bits: with a gzip header, with a zlib one


class Gone(Exception):
    """The client went away before its request was whole; nobody is there to be answered."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limits: Limits, share: Share) -> bytes:
    """Read a body as it was sent.

    Raises:
        Refusal: 408 not whole in time, 413 larger than the limit, 503 no memory for it now.
        Gone: the client went away.
    """
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or int(length[:20]) > limits.body):
        raise _too_large(limits)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    if not message["more_body"]:
        whole: bytes = message["body"]
        if len(whole) > limits.body:
            raise _too_large(limits)
        share.grow(len(whole))
        return whole
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _rest(receive, message["body"], limits, share)
    except TimeoutError as error:
        raise Refusal(
            408, "slow_body", f"the body was not complete within {limits.body_seconds:g} s. Send it faster, or less."
        ) from error


async def _rest(receive: Receive, first: bytes, limits: Limits, share: Share) -> bytes:
    parts, size = [first], len(first)
    share.grow(size)  # as it comes: a length that is only announced holds nothing
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part, more = message["body"], message["more_body"]
        size += len(part)
        if size > limits.body:
            raise _too_large(limits)
        share.grow(len(part))
        parts.append(part)
    if size <= _STEP:
        return b"".join(parts)
    return await asyncio.get_running_loop().run_in_executor(None, b"".join, parts)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, "too_large", f"expected a body of at most {limits.body} bytes. Send fewer rows at a time.")


def inflate(body: bytes, encoding: bytes, limits: Limits, share: Share) -> bytes:
    """Inflate a body, and stop as soon as it grows past the limit.

    Raises:
        Refusal: 415 an encoding other than gzip and deflate, 413 too large when inflated, 400 not what it says.
    """
    window = _WINDOWS.get(encoding.strip().lower())
    if window is None:
        raise Refusal(
            415, "encoding", f"expected Content-Encoding gzip or deflate, got {encoding[:40].decode('latin-1')!r}."
        )
    stream, parts, size, rest = zlib.decompressobj(window), list[bytes](), 0, body
    try:
        while not stream.eof:
            part = stream.decompress(rest, _STEP)
            if not part and not stream.unconsumed_tail:
                break
            size += len(part)
            if size > limits.body:
                raise _too_large(limits)
            share.grow(len(part))
            parts.append(part)
            rest = stream.unconsumed_tail
    except zlib.error as error:
        raise bad("the body is not what its Content-Encoding says.") from error
    if not stream.eof or stream.unused_data:
        raise bad("the body ends before, or goes on after, its compressed data does.")
    return b"".join(parts)


def deflate(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """Compress an answer where the client takes that; return it and its encoding, None where it is as it was."""
    parts = accepted.lower().replace(b" ", b"").split(b",")
    names = {part.partition(b";")[0] for part in parts if not part.endswith(b";q=0")}
    for name, window in _WINDOWS.items():
        if name in names:
            stream = zlib.compressobj(1, zlib.DEFLATED, window)
            return stream.compress(body) + stream.flush(), name
    return body, None
