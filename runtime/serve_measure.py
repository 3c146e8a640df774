"""What a served version counts and times, for the statistics extension: cheap at every request, read as plain JSON."""

import threading
import time
from collections import defaultdict
from typing import Any


class Measure:
    """Counts and sums of nanoseconds; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.rows = self.failed = self.runs = 0
        self.total_ns = self.failed_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0
        self.last_ms = 0
        self._batches: dict[int, list[int]] = defaultdict(lambda: [0, 0])

    def ran(self, rows: int, nanoseconds: int) -> None:
        """Count one run of the backend."""
        with self._lock:
            self.runs += 1
            batch = self._batches[rows]
            batch[0] += 1
            batch[1] += nanoseconds

    def answered(self, rows: int, spent: tuple[int, int, int, int]) -> None:
        """Count a request that was answered.

        Args:
            rows: in it.
            spent: nanoseconds on reading it, in the queue, in the run that it shared, and on writing the answer.
        """
        with self._lock:
            self.requests += 1
            self.rows += rows
            self.input_ns += spent[0]
            self.queue_ns += spent[1]
            self.infer_ns += spent[2]
            self.output_ns += spent[3]
            self.total_ns += sum(spent)
            self.last_ms = time.time_ns() // 1_000_000

    def refused(self, nanoseconds: int) -> None:
        """Count a request that was not."""
        with self._lock:
            self.failed += 1
            self.failed_ns += nanoseconds

    def read(self, name: str, version: str) -> dict[str, Any]:
        """Return everything as the statistics extension has it."""
        with self._lock:
            done = self.requests
            return {
                "name": name,
                "version": version,
                "last_inference": self.last_ms,
                "inference_count": self.rows,
                "execution_count": self.runs,
                "inference_stats": {
                    "success": _entry(done, self.total_ns),
                    "fail": _entry(self.failed, self.failed_ns),
                    "queue": _entry(done, self.queue_ns),
                    "compute_input": _entry(done, self.input_ns),
                    "compute_infer": _entry(done, self.infer_ns),
                    "compute_output": _entry(done, self.output_ns),
                    "cache_hit": _entry(0, 0),
                    "cache_miss": _entry(0, 0),
                },
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": _entry(count, 0),
                        "compute_infer": _entry(count, spent),
                        "compute_output": _entry(count, 0),
                    }
                    for size, (count, spent) in sorted(self._batches.items())
                ],
            }


def _entry(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}
