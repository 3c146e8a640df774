"""What a request can come to instead of an answer, as an HTTP status and one line.

    400  malformed, or does not fit the model        408  the body did not arrive in time
    401  no token, or a wrong one                    413  larger than the server takes
    403  not allowed here                            415  an encoding that is not known
    404  no such model, version or address           429  more connections than the server takes
    405  another method                              503  busy, draining, or the backend is dead: try again
                                                     504  its time passed while it waited

A line never holds a path, an address or another client's data: what only the operator may know goes to the log.
"""

import logging

from engineworks.runtime.errors import DeadlineError, EngineworksError, InputError, QueueFullError

_log = logging.getLogger("engineworks.serve")


class Refusal(Exception):
    """A request that is answered with an error: ``status``, ``reason`` for the metrics, and the line as its text."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


def bad(message: str) -> Refusal:
    """Refuse what is malformed or does not fit: 400."""
    return Refusal(400, "invalid", message)


_KNOWN: tuple[tuple[type[BaseException], int, str, str], ...] = (
    (QueueFullError, 503, "queue_full", "the queue is full. Try again in a moment."),
    (DeadlineError, 504, "deadline", "the request's time passed while it waited; it was not run."),
    (MemoryError, 503, "memory", "there is no memory for this request now. Send a smaller one, or try again."),
)


def refusal_of(error: BaseException) -> Refusal:
    """Say what became of a request, from the error that ended it; what is not the client's business is logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return bad(str(error))
    for kind, status, reason, message in _KNOWN:
        if isinstance(error, kind):
            return Refusal(status, reason, message)
    _log.error("a request failed: %s: %s", type(error).__name__, error)
    if isinstance(error, EngineworksError):
        return Refusal(503, "backend", "the backend could not run this request. Try again; the server's log says more.")
    return Refusal(500, "internal", "the server failed on this request; its log says more.")
