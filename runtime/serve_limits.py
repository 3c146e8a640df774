"""What a request may cost, and the memory that all requests together may hold."""

import threading
from dataclasses import dataclass

from engineworks.runtime.oip_errors import Refusal

MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of a request, in bytes, seconds and pixels.

    Reading JSON holds Python's lock: 8 MiB of it kept a probe waiting for 65 ms, so half of that is the default, which
    is one picture of 3 × 224 × 224. Binary tensors are not read, only looked at.
    """

    body: int = 64 * MB
    json: int = 4 * MB
    memory: int = 512 * MB
    pixels: int = 50_000_000
    body_seconds: float = 30.0
    wait_seconds: float = 30.0


class Budget:
    """Bytes that requests hold at this moment; every method may be called from any thread."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """How many bytes are held now."""
        return self._held

    def take(self, count: int) -> None:
        """Hold so many bytes more.

        Raises:
            Refusal: 503; there are not so many left.
        """
        with self._lock:
            if self._held + count > self._most:
                raise Refusal(503, "memory", "other requests hold all the memory for bodies. Try again in a moment.")
            self._held += count

    def give(self, count: int) -> None:
        """Hold so many bytes less."""
        with self._lock:
            self._held -= count


class Share:
    """What one request holds of a budget; ``close`` gives it back."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._held = budget, 0

    def grow(self, count: int) -> None:
        """Hold so many bytes more; see ``Budget.take``."""
        self._budget.take(count)
        self._held += count

    def close(self) -> None:
        """Give everything back; calling it again does nothing."""
        self._budget.give(self._held)
        self._held = 0
