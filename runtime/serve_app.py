"""The server as an ASGI application: who may ask, and what is answered, counted and logged of every request."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from engineworks.runtime.oip_errors import Refusal, refusal_of
from engineworks.runtime.serve_body import Gone
from engineworks.runtime.serve_log import AccessLog
from engineworks.runtime.serve_metrics import Metrics
from engineworks.runtime.serve_reply import Reply, refusal_reply
from engineworks.runtime.serve_routes import OPEN, Call, Routes
from engineworks.runtime.serve_trace import request_id, trace_of

Send = Callable[[Any], Awaitable[None]]
_log = logging.getLogger("engineworks.serve")


class App:
    """Answers every request with what its address leads to, or with a refusal; nothing is raised to the server."""

    def __init__(self, routes: Routes, metrics: Metrics, access: AccessLog, token: str | None) -> None:
        self._routes, self._metrics, self._access = routes, metrics, access
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        call = Call(scope["method"], scope["path"], headers, scope, receive)
        try:
            self._admit(call)
            reply = await self._routes.answer(call)
        except (Gone, asyncio.CancelledError):  # the client went away, before or after its request was whole
            return
        except Exception as error:
            reply = self._refused(call, error)
        finally:
            call.close()
        await self._send(call, reply, send, began)

    def _admit(self, call: Call) -> None:
        """Refuse who has no token, and pages of other sites: a browser would let them write to a loopback address."""
        origin = call.headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != call.headers.get(b"host"):
            raise Refusal(403, "origin", "requests from pages of other sites are not answered.")
        if self._token is None or call.path in OPEN:
            return
        kind, _, given = call.headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
            raise Refusal(401, "token", "expected the header Authorization: Bearer TOKEN with the server's token.")

    def _refused(self, call: Call, error: Exception) -> Reply:
        refusal = refusal_of(error)
        if refusal.status == 500:
            _log.error("request failed", exc_info=error)
        self._metrics.failed(refusal.reason, refusal.status, call.served)
        if call.served is not None:
            call.served.measure.refused(0)
        return refusal_reply(refusal)

    async def _send(self, call: Call, reply: Reply, send: Send, began: float) -> None:
        own = request_id(call.headers.get(b"x-request-id"))
        parent = call.headers.get(b"traceparent")
        trace = trace_of(parent) if parent else None
        headers = [
            (b"content-type", reply.kind),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", own),
            *reply.headers,
        ]
        if trace:
            headers.append((b"traceresponse", trace.response))
        with suppress(OSError):  # the client went away meanwhile
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else reply.body})
        if self._access.wants(reply.status):
            line = {
                "method": call.method,
                "path": call.path[:200],
                "status": reply.status,
                "seconds": round(time.perf_counter() - began, 6),
                "bytes": len(reply.body),
                "client": (call.scope.get("client") or [None])[0],
                "request_id": own.decode(),
            }
            if call.served is not None:
                line |= {"model": call.served.name, "version": call.served.version}
            if trace:
                line |= {"trace_id": trace.trace_id, "parent_id": trace.parent_id, "span_id": trace.span_id}
            self._access.write(line)
