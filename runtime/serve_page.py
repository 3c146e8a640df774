"""The page at ``/``, and the figures that it shows: models, how near they are to the original, and what they do now."""

from functools import cache
from pathlib import Path
from typing import Any

from engineworks.runtime.manifest import Manifest
from engineworks.runtime.serve_model import Served
from engineworks.runtime.serve_models import Models


@cache
def page() -> bytes:
    """Return the page: one file that loads nothing from anywhere."""
    return Path(__file__).with_name("serve_page.html").read_bytes()


def status(models: Models, *, draining: bool) -> dict[str, Any]:
    """Return what the page shows, as JSON."""
    return {"draining": draining, "models": [_model(served) for served in models.all()]}


def _model(served: Served) -> dict[str, Any]:
    m, stats, measure = served.manifest, served.session.stats(), served.measure
    return {
        "name": served.name,
        "version": served.version,
        "network": m.model.name,
        "trained": m.weights.trained,
        "precision": m.precision.asked,
        "backend": str(served.backend),
        "ready": not served.failing,
        "classifies": m.preprocessing is not None and len(m.outputs) == 1 and len(m.outputs[0].shape) == 2,
        "parity": _parity(m),
        "requests": measure.requests,
        "failed": measure.failed,
        "rows": measure.rows,
        "queued": served.queued,
        "rows_per_run": round(stats.rows_per_call, 2),
        "p50_ms": stats.p50_ms,
        "p99_ms": stats.p99_ms,
    }


def _parity(m: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "of": rung.candidate,
            "against": rung.reference,
            "batch": rung.batch,
            "sqnr_db": rung.sqnr_db,
            "required_db": rung.required_db,
            "top1": rung.top1,
        }
        for rung in m.parity
    ]
