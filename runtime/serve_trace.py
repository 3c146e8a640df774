"""Who asked, and as part of what: request ids and W3C trace context.

A client's id is kept where it is a plain word; else one is made. A valid ``traceparent`` (W3C Trace Context, section
3.2) is answered with a ``traceresponse`` that holds its trace and a span of our own, and both go to the access log.
"""

import itertools
import re
import secrets
from dataclasses import dataclass

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_PREFIX = secrets.token_hex(6)
_number = itertools.count(1)


@dataclass(frozen=True)
class Trace:
    """A trace that a request belongs to: its id, the caller's span, ours, and the flags."""

    trace_id: str
    parent_id: str
    span_id: str
    flags: str

    @property
    def response(self) -> bytes:
        """The ``traceresponse`` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}".encode()


def request_id(given: bytes | None) -> bytes:
    """Return the client's id where it is a word of up to 128 signs, else a new one."""
    if given is not None and _ID.fullmatch(given):
        return given
    return f"{_PREFIX}-{next(_number):x}".encode()


def trace_of(parent: bytes | None) -> Trace | None:
    """Read ``traceparent``; None where there is none, or it is not as the standard says."""
    found = _PARENT.fullmatch(parent) if parent is not None and len(parent) <= 512 else None
    if found is None or (parent and parent[:2] == b"00" and found[4]):
        return None
    return Trace(found[1].decode(), found[2].decode(), secrets.token_hex(8), found[3].decode())
