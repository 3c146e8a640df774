"""Put the server together from its settings, and run it until it is told to stop."""

import asyncio
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.runtime.errors import BackendError
from engineworks.runtime.serve_build import Build, better_by
from engineworks.runtime.serve_grpc_server import beside
from engineworks.runtime.serve_limits import Limits
from engineworks.runtime.serve_log import AccessLog, Which, say
from engineworks.runtime.serve_model import Opening
from engineworks.runtime.serve_models import Models

_NEEDED = ("uvicorn", "httptools", "orjson", "prometheus_client")
_THREADS = 4
_KEEP_ALIVE = 75  # seconds; longer than load balancers keep theirs, which else meet a connection that just closed
_FINISH = 60  # seconds for what is under way when the server ends


@dataclass(frozen=True)
class Settings:
    """Everything that the command line says."""

    bundles: tuple[str, ...]
    repository: str | None
    control: bool
    host: str
    port: int
    grpc_port: int | None
    opening: Opening
    limits: Limits
    max_connections: int
    head_seconds: float
    drain_seconds: float
    watch: bool
    watch_seconds: float
    access_log: Which
    token: str | None
    tls: tuple[str, str] | None
    engines: Path | None = None
    """Where engines that are compiled here are kept; None where none are."""


def serve(settings: Settings) -> int:
    """Load every bundle, then answer until a signal; return the exit status.

    Raises:
        BundleError: a bundle cannot be opened.
        BackendError: a package is missing, nothing runs a bundle here, or the address is taken.
    """
    _check_packages(settings)
    _heed_stop()
    logging.basicConfig(level=logging.WARNING, format="serve-model: %(message)s")
    with ThreadPoolExecutor(_THREADS, "engineworks-serve") as threads:
        repository = Path(settings.repository) if settings.repository else None
        models = Models(settings.opening, threads, repository)
        if settings.engines is not None:
            models.better = better_by(settings.engines, settings.opening)
        for text in settings.bundles:
            models.add(text)
        models.rescan()
        if not models.sources:
            raise BackendError(f"--repository {settings.repository}: holds no bundle. Make one with export-model.")
        try:
            with (
                _bound(settings.host, settings.port) as listener,
                asyncio.Runner(loop_factory=_loop_factory()) as runner,
            ):
                return runner.run(_serve(settings, models, threads, listener))
        finally:
            for served in list(models.all()):
                served.close()


def _heed_stop() -> None:
    """Let SIGTERM end the loading of models where this is a container's first process, which the kernel spares else."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def _bound(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded; nobody can connect until the server listens.

    Raises:
        BackendError: it is taken, or is none of this host.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise BackendError(
            f"cannot listen on {host}:{port} ({error.strerror or error}). Pass another --port."
        ) from error
    return listener


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _check_packages(settings: Settings) -> None:
    wanted = _NEEDED if settings.grpc_port is None else (*_NEEDED, "grpc", "google.protobuf")
    for name in wanted:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            extra = "serve" if name in _NEEDED else "serve,grpc"
            raise BackendError(f"serve-model needs {name}. Run: pip install 'engineworks[{extra}]'")


async def _serve(settings: Settings, models: Models, threads: ThreadPoolExecutor, listener: socket.socket) -> int:
    for key in sorted(models.sources):
        served = await models.load(key)
        say(f"serve-model: {served.name} version {served.version}: {served.session.backend}")
    access = AccessLog(settings.access_log)
    try:
        server, service = _server(settings, models, threads, access)
        limits = (settings.limits.body, settings.max_connections)
        async with beside(settings.host, settings.grpc_port, service, limits, settings.tls):
            await server.serve(sockets=[listener])
        return 0
    finally:
        access.close()


def _server(
    settings: Settings, models: Models, threads: ThreadPoolExecutor, access: AccessLog
) -> tuple[Any, Callable[[], Any]]:
    """Return the server, and what makes the gRPC service beside it."""
    import uvicorn

    from engineworks.runtime.serve_app import App
    from engineworks.runtime.serve_bridge import Bridge
    from engineworks.runtime.serve_http import Connection
    from engineworks.runtime.serve_infer import Inference
    from engineworks.runtime.serve_metrics import Metrics
    from engineworks.runtime.serve_routes import Routes
    from engineworks.runtime.serve_server import Server

    metrics = Metrics()
    inference = Inference(Bridge(asyncio.get_running_loop()), threads, settings.limits, metrics)
    routes = Routes(models, inference, metrics, settings.control)
    metrics.watch(models, routes.budget, access)
    connection = type(
        "Connection", (Connection,), {"most": settings.max_connections, "head_seconds": settings.head_seconds}
    )
    config = uvicorn.Config(
        App(routes, metrics, access, settings.token),
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        interface="asgi3",
        backlog=2048,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_FINISH,
        ssl_certfile=settings.tls[0] if settings.tls else None,
        ssl_keyfile=settings.tls[1] if settings.tls else None,
    )

    def drain() -> None:
        routes.draining = True

    def service() -> Any:
        from engineworks.runtime.serve_grpc import Grpc

        return Grpc(models, routes, inference, metrics, settings.token)

    server = Server(
        config,
        drain_seconds=settings.drain_seconds,
        on_drain=drain,
        background=_background(settings, models, metrics),
        on_start=lambda port: say(_listening(settings, port)),
    )
    return server, service


def _background(settings: Settings, models: Models, metrics: Any) -> list[Callable[[], Awaitable[Any]]]:
    from engineworks.runtime.serve_watch import Watch

    watch = [Watch(models, metrics, settings.watch_seconds).run] if settings.watch else []
    build = [] if settings.engines is None else [Build(models, metrics, settings.engines).run]
    return [*watch, *build]


def _listening(settings: Settings, port: int) -> str:
    scheme = "https" if settings.tls else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"serve-model: listening on {scheme}://{host}:{port}"
