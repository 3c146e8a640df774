"""Counts and times of a session: cheap to keep at every call, read as one frozen value."""

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engineworks.runtime.fork import abandon_after_fork

_RECENT = 1024


@dataclass(frozen=True)
class Stats:
    """What a session has done since it was loaded; see ``Session.stats``.

    Attributes:
        calls: runs of the backend that answered; several submitted requests may leave as one.
        rows: rows in them, padding not counted.
        padded: rows added to reach the bundle's smallest batch, and dropped from the answer.
        failed: runs that raised.
        submitted: requests that the batcher took.
        refused: requests that found its queue full.
        expired: requests whose time passed while they waited.
        cancelled: requests that were cancelled while they waited.
        queued: requests that wait now.
        in_flight: runs that are under way now.
        p50_ms: half of the latest 1,024 runs took no longer, in milliseconds; None before the first.
        p90_ms: the same for nine in ten.
        p99_ms: the same for 99 in 100.
    """

    calls: int
    rows: int
    padded: int
    failed: int
    submitted: int
    refused: int
    expired: int
    cancelled: int
    queued: int
    in_flight: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None

    @property
    def rows_per_call(self) -> float:
        """The mean batch; 0 before the first run."""
        return self.rows / self.calls if self.calls else 0.0


class Tally:
    """The counters behind ``Stats``; every method may be called from any thread."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("calls", "rows", "padded", "failed"), 0)
        self.counts |= dict.fromkeys(("submitted", "refused", "expired", "cancelled"), 0)
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()
        abandon_after_fork(self)

    def ran(self, rows: int, nanoseconds: int) -> None:
        """Count one run of the backend that answered."""
        counts = self.counts
        with self._lock:
            counts["calls"] += 1
            counts["rows"] += rows
            self._recent.append(nanoseconds)

    def add(self, name: str, number: int = 1) -> None:
        """Count something else, by its name in ``Stats``."""
        with self._lock:
            self.counts[name] += number

    def read(self, *, queued: int, in_flight: int) -> Stats:
        """Return everything as it is now."""
        with self._lock:
            counts, recent = dict(self.counts), sorted(self._recent)
        p50, p90, p99 = (quantile(recent, share) / 1e6 if recent else None for share in (0.5, 0.9, 0.99))
        return Stats(**counts, queued=queued, in_flight=in_flight, p50_ms=p50, p90_ms=p90, p99_ms=p99)

    def abandon(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the ordered values that at least ``share`` of them do not exceed (nearest rank)."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
