"""Prometheus metrics of a server: by model and version, never by anything that a client chooses.

The histograms are in seconds, with bounds from a tenth of a millisecond to half a minute.
"""

from collections.abc import Iterator
from typing import Any

from engineworks.runtime.serve_limits import Budget
from engineworks.runtime.serve_log import AccessLog
from engineworks.runtime.serve_model import Served
from engineworks.runtime.serve_models import Models

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BY_MODEL = ["model", "version"]
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """A registry of its own; see the first line of every metric for what it is."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: Any) -> Any:
            return Histogram(f"engineworks_{name}", what, _BY_MODEL, buckets=buckets, registry=self.registry)

        self._requests = Counter(
            "engineworks_requests", "Requests answered, by model and status", [*_BY_MODEL, "status"],
            registry=self.registry,
        )  # fmt: skip
        self._failures = Counter(
            "engineworks_failures", "Requests refused, by reason", ["reason"], registry=self.registry
        )
        self._rows = Counter("engineworks_rows", "Rows answered", _BY_MODEL, registry=self.registry)
        self._queue = histogram("queue_seconds", "Time a request waited for its run", _SECONDS)
        self._compute = histogram("compute_seconds", "Time of the run that answered a request", _SECONDS)
        self._batch = histogram("batch_rows", "Rows in a run of the backend", _ROWS)
        self._builds = Counter(
            "engineworks_engine_builds", "Engines compiled here, by outcome", ["outcome"], registry=self.registry
        )
        self._reloads = Counter("engineworks_loads", "Versions loaded, by outcome", ["outcome"], registry=self.registry)

    def of(self, served: Served) -> "ModelMetrics":
        """Return the metrics of one version, ready to be counted up."""
        at = (served.name, served.version)
        return ModelMetrics(
            self._requests.labels(*at, "200"),
            self._rows.labels(*at),
            self._queue.labels(*at),
            self._compute.labels(*at),
            self._batch.labels(*at),
        )

    def failed(self, reason: str, status: int, served: Served | None) -> None:
        """Count a request that was refused."""
        self._failures.labels(reason).inc()
        if served is not None:
            self._requests.labels(served.name, served.version, str(status)).inc()

    def loaded(self, outcome: str) -> None:
        """Count a version that was loaded (``ok``) or refused (``refused``)."""
        self._reloads.labels(outcome).inc()

    def built(self, outcome: str) -> None:
        """Count an engine that was compiled here and took over (``ok``) or did not (``failed``)."""
        self._builds.labels(outcome).inc()

    def watch(self, models: Models, budget: Budget, log: AccessLog) -> None:
        """Read these whenever the metrics are asked for."""
        self.registry.register(_Now(models, budget, log))

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class ModelMetrics:
    """The counters of one version."""

    def __init__(self, requests: Any, rows: Any, queue: Any, compute: Any, batch: Any) -> None:
        self._requests, self._rows, self._queue, self._compute, self._batch = requests, rows, queue, compute, batch

    def answered(self, rows: int, queue: float, compute: float) -> None:
        """Count a request that was answered, with the seconds that it waited and that its run took."""
        self._requests.inc()
        self._rows.inc(rows)
        self._queue.observe(queue)
        self._compute.observe(compute)

    def ran(self, rows: int, seconds: float) -> None:
        """Count one run of the backend."""
        self._batch.observe(rows)


class _Now:
    """What is not counted but is so at this moment."""

    def __init__(self, models: Models, budget: Budget, log: AccessLog) -> None:
        self._models, self._budget, self._log = models, budget, log

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        queued = GaugeMetricFamily("engineworks_queued_requests", "Requests that wait now", labels=_BY_MODEL)
        loaded = GaugeMetricFamily("engineworks_model_ready", "1 where a version can answer", labels=_BY_MODEL)
        for served in self._models.all():
            queued.add_metric([served.name, served.version], served.queued)
            loaded.add_metric([served.name, served.version], 0 if served.failing else 1)
        yield queued
        yield loaded
        yield GaugeMetricFamily("engineworks_body_bytes", "Bytes of bodies held now", value=self._budget.held)
        yield GaugeMetricFamily("engineworks_log_lines_dropped", "Access log lines dropped", value=self._log.dropped)
