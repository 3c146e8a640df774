"""An answer on its way to a client: a status, headers and a body, and how JSON is written."""

from dataclasses import dataclass, field
from typing import Any

from engineworks.runtime.oip_errors import Refusal

JSON = b"application/json"
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Reply:
    """What is sent. ``model`` and ``rows`` are for the access log."""

    status: int
    body: bytes = b""
    kind: bytes = JSON
    headers: Headers = field(default_factory=list)


def json_reply(content: Any, status: int = 200) -> Reply:
    """Write a value as JSON."""
    import orjson

    return Reply(status, orjson.dumps(content))


def refusal_reply(refusal: Refusal) -> Reply:
    """Write a refusal as the protocol does: ``{"error": "…"}``, with Retry-After where another try may succeed."""
    import orjson

    headers: Headers = []
    if refusal.status in {429, 503}:
        headers.append((b"retry-after", b"1"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 405:
        headers.append((b"allow", str(refusal).partition("expected ")[2].partition(",")[0].encode()))
    return Reply(refusal.status, orjson.dumps({"error": str(refusal)}), headers=headers)
