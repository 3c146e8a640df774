"""Connections: uvicorn's protocol with the limits that it lacks.

uvicorn 0.54 bounds neither the time nor the bytes of a request's head, nor how many chunks a body comes in, and answers
its connection limit to clients that are already there. Here a connection that is one too many is told 429, a head
that is late 408, one that is too long 431, and a body in too many chunks is cut off with 413.
"""

from asyncio import TimerHandle
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.serve_reply import refusal_reply

_MOST_HEAD = 64 << 10  # bytes
_MOST_CHUNKS = 65_536  # what Triton allows
_LINGER = 2.0  # seconds; a client that still sends when it has been refused would else never see why
_PHRASES = {408: b"Request Timeout", 413: b"Content Too Large", 429: b"Too Many Requests"}
_PHRASES[431] = b"Request Header Fields Too Large"


class Connection(HttpToolsProtocol):
    """One client's connection; ``most`` may be open at once, and a head takes ``head_seconds`` at most."""

    most: ClassVar[int] = 1024
    head_seconds: ClassVar[float] = 10.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: TimerHandle | None = None
        self._head = self._chunks = 0
        self._cut, self._whole = False, True

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(Refusal(429, "connections", "too many connections are open. Try again in a moment."))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the client waited for: a request that is still queued is not run."""
        self._head_is_here()
        waiting = bool(self.cycle and not self.cycle.response_complete)
        scope: Any = self.scope
        super().connection_lost(exc)
        if waiting and scope and (cancel := scope.get("engineworks.cancel")):
            cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and watch how long the head grows."""
        if self._cut:
            return
        if self._late is not None:
            self._head += len(data)
            if self._head > _MOST_HEAD + (256 << 10):  # one read may hold the start of a body as well
                self._refuse(Refusal(431, "head", "the request's head is too long."))
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start to watch a new request."""
        super().on_message_begin()
        self._chunks, self._whole = 0, False
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header while the head is not too long."""
        super().on_header(name, value)
        if sum(len(key) + len(text) for key, text in self.headers[-1:]) > _MOST_HEAD or len(self.headers) > 128:
            self._refuse(Refusal(431, "head", "the request's head is too long."))

    def on_headers_complete(self) -> None:
        """The head is whole: from here on the application watches."""
        self._head_is_here()
        if not self._cut:
            super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Count chunks: a body of hundreds of thousands costs more to take apart than it is worth."""
        self._chunks += 1
        if self._chunks > _MOST_CHUNKS:
            self._refuse(Refusal(413, "chunks", f"expected at most {_MOST_CHUNKS} chunks. Send larger ones."))

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless the request was cut off."""
        if not self._cut:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole, unless it was cut off; one that was answered before makes way for the next."""
        self._whole = True
        if self._cut:
            return
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline and not self.transport.is_closing():
            self._head_is_here()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Wait for the next request, or a short while for the rest of one that was answered before it was whole."""
        super().on_response_complete()
        waits = self.cycle.response_complete and not self._whole  # and is no pipelined request that is being answered
        if waits and self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(_LINGER, self.timeout_keep_alive_handler)

    def _await_head(self) -> None:
        self._head = 0
        self._late = self.loop.call_later(self.head_seconds, self._too_late)

    def _head_is_here(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        self._refuse(Refusal(408, "slow_head", "the request's head was not complete in time."))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer past the application, and close."""
        if self._cut:
            return
        self._cut = True
        self._head_is_here()
        if self.transport.is_closing():
            return
        reply = refusal_reply(refusal)
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (refusal.status, _PHRASES[refusal.status], len(reply.body)) + reply.body)
        self.transport.close()
