"""A bundle as the configuration of a Ray Serve application: what ``serve deploy FILE`` takes.

The fields are those of Ray's ``ServeDeploySchema``; the application is ``engineworks.runtime.ray_app``.
"""

from pathlib import Path
from typing import Any

from engineworks.runtime import plain_yaml
from engineworks.runtime.deploy_kserve import ONE_GPU, Scale
from engineworks.runtime.deploy_triton import batches
from engineworks.runtime.errors import BundleError
from engineworks.runtime.manifest import Manifest

LOOPBACK = "127.0.0.1"
IMPORT_PATH = "engineworks.runtime.ray_app:build"
_PORT = 8000
_QUEUE = 1024  # requests that may wait in each proxy before Ray answers 503, as in runtime.load
_FINISH = 60  # seconds for what is under way when a replica is taken away, as in serve-model


def ray_config(
    m: Manifest, path: Path, *, name: str | None = None, host: str = LOOPBACK, scale: Scale = ONE_GPU
) -> tuple[str, tuple[str, ...]]:
    """Write the configuration of an application that serves one bundle.

    Args:
        m: the bundle's manifest.
        path: the bundle's folder, as every node finds it.
        name: the application's name; None for the bundle's.
        host: where the proxy of each node listens.
        scale: replicas; one GPU for each, or none.

    Returns:
        The YAML text, and what its reader must know.

    Raises:
        BundleError: more than one GPU for each replica.
    """
    if scale.gpus > 1:
        raise BundleError(f"Ray: a replica runs on one GPU or none, got {scale.gpus}. Raise --replicas instead.")
    folder, called = path.absolute(), name or m.name
    notes = [
        f"every node must find the bundle at {folder}, and 'engineworks[ray]' installed.",
        f"start it with: serve deploy FILE; then http://{host}:{_PORT}/v2/models/{m.name} answers on every node.",
        "/metrics and /v2/models/stats tell of the replica that answers; Ray's own metrics tell of all.",
    ]
    if host != LOOPBACK:
        notes.append(f"it listens on {host}, and Ray asks nobody for a token: let only whom you trust reach it.")
    if not batches(m):
        notes.append("the batch is fixed in the graph, so requests are answered one by one.")
    document = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": _PORT},
        "applications": [_application(m, folder, called, scale)],
    }
    return plain_yaml.dump([document], f"{m.summary}\nWritten by deploy-model, for: serve deploy FILE"), tuple(notes)


def _application(m: Manifest, folder: Path, name: str, scale: Scale) -> dict[str, Any]:
    where = {"device": "cuda"} if scale.gpus else {"device": "cpu", "threads": 1}
    return {
        "name": name,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": {"bundle": str(folder), **where, "contexts": _contexts(scale)},
        "deployments": [_deployment(m, scale)],
    }


def _deployment(m: Manifest, scale: Scale) -> dict[str, Any]:
    """Size it by the largest batch: that many requests keep a replica busy, and as many may gather meanwhile."""
    largest = m.batch.max if batches(m) else 1
    return {
        "name": m.name,
        "max_ongoing_requests": largest * (_contexts(scale) + 1),
        "max_queued_requests": _QUEUE,
        "autoscaling_config": {
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": largest,
        },
        "ray_actor_options": {"num_cpus": 1, "num_gpus": scale.gpus},
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": _FINISH,
    }


def _contexts(scale: Scale) -> int:
    """Two batches may be under way on a GPU, so that one is copied while the other computes; one on a CPU."""
    return 2 if scale.gpus else 1
