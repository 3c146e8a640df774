"""A bundle as a Ray Serve application: ``serve-model``'s protocol on every replica, batches by ``serve.batch``.

Ray passes requests on, starts replicas and replaces dead ones; everything that a request can come to is decided here as
in ``serve-model``. Ray is imported when an application is built, and only then.
"""

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.runtime.batcher import Ask
from engineworks.runtime.bundle import open_bundle
from engineworks.runtime.errors import BackendError
from engineworks.runtime.oip_request import Request
from engineworks.runtime.serve_bridge import Bridge
from engineworks.runtime.serve_infer import Inference
from engineworks.runtime.serve_limits import Limits
from engineworks.runtime.serve_model import Opening, Outcome, Served, open_served
from engineworks.runtime.serve_models import Models

_THREADS = 4
_NEEDED = ("ray", "orjson", "prometheus_client")
_KINDS: dict[str, Callable[[Any], Any]] = {
    "device": str,
    "backend": str,
    "strict": lambda value: str(value).lower() == "true",
    "threads": int,
    "contexts": int,
    "max_batch": int,
    "queue": int,
}
Gather = Callable[["Item"], Awaitable["Outcome | BaseException"]]


@dataclass(frozen=True, eq=False)
class Item:
    """One request on its way into a batch."""

    served: Served
    ask: Ask


class Gathered(Inference):
    """``serve-model``'s way with a request, but for the batch, which Ray gathers: its metrics tell of it then."""

    gather: Gather

    async def run(self, served: Served, request: Request, at_once: bool, scope: Any) -> Outcome:
        """Let a request share a batch, and wait for its outcome."""
        timeout = min(request.timeout or self.limits.wait_seconds, self.limits.wait_seconds)
        outcome = await self.gather(Item(served, served.ask(request.arrays, timeout)))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Replica:
    """One replica: the bundle, loaded and warmed up before it counts as ready.

    Args of the constructor:
        bundle: its folder, at the same place on every node.
        opening: fields of ``Opening``.
    """

    def __init__(self, bundle: str, opening: Mapping[str, Any]) -> None:
        self._opening = Opening(**opening)
        self._threads = ThreadPoolExecutor(_THREADS, "engineworks-ray")
        self._models = Models(self._opening, self._threads)
        self._models.add(bundle)
        (((name, version), path),) = self._models.sources.items()
        self._served = open_served(name, version, path, self._opening)
        self._models.loaded[name] = {version: self._served}
        self._app: Any = None

    async def __call__(self, request: Any) -> Any:
        """Answer one HTTP request: starlette's in, starlette's out."""
        from starlette.responses import Response

        if self._app is None:
            self._app = self._make_app()
        sent = list[Any]()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(_below_prefix(request.scope), request.receive, send)
        if not sent:
            return Response(status_code=400)  # the client went away: nobody reads it
        response = Response(sent[1]["body"], sent[0]["status"])
        response.raw_headers = sent[0]["headers"]
        return response

    def check_health(self) -> None:
        """Answer Ray's question: raise where it should replace the replica after three times.

        Raises:
            BackendError: the backend failed the latest run, and has not run zeros since.
        """
        if not self._models.ready():
            raise BackendError(f"bundle {self._served.name}: the backend failed; it is tried again.")

    def close(self) -> None:
        """Finish what is queued and free the backend; again does nothing."""
        self._served.close()
        self._threads.shutdown()

    def __del__(self) -> None:
        if hasattr(self, "_served"):
            self.close()  # Ray deletes a replica when what it was given is answered

    def _make_app(self) -> Any:
        """Make the application in the loop that will run it."""
        from engineworks.runtime.serve_app import App
        from engineworks.runtime.serve_log import AccessLog
        from engineworks.runtime.serve_metrics import Metrics
        from engineworks.runtime.serve_routes import Routes

        metrics, bridge = Metrics(), Bridge(asyncio.get_running_loop())
        inference = Gathered(bridge, self._threads, Limits(), metrics)
        largest = self._served.rules.largest if self._served.joins else 1
        inference.gather = gathering(bridge, largest, self._opening.contexts)
        return App(Routes(self._models, inference, metrics, control=False), metrics, AccessLog("off"), None)


def gathering(bridge: Bridge, largest: int, contexts: int) -> Gather:
    """Gather requests of together ``largest`` rows at most with ``serve.batch``, without waiting for more to come."""
    from ray import serve

    async def batch(items: list[Item]) -> list[Outcome | BaseException]:
        return await together(bridge, items)

    gather: Gather = serve.batch(
        max_batch_size=largest,
        batch_wait_timeout_s=0,
        max_concurrent_batches=contexts,
        batch_size_fn=lambda items: sum(item.ask.rows for item in items) if largest > 1 else len(items),
    )(batch)
    return gather


async def together(bridge: Bridge, items: list[Item]) -> list[Outcome | BaseException]:
    """Run what was gathered as one batch; return for each what became of it, for one's error is not its neighbours'."""
    try:
        futures = items[0].served.submit_all([item.ask for item in items])
    except Exception as error:
        return [error] * len(items)
    answers: list[Outcome | BaseException] = await asyncio.gather(*map(bridge.wait, futures), return_exceptions=True)
    return answers


def build(args: Mapping[str, Any]) -> Any:
    """Build the application: what ``import_path`` in a Ray Serve configuration names.

    Args:
        args: ``bundle``, its folder; every other one is a field of ``Opening``, as text or as itself.

    Returns:
        A Ray Serve application of one deployment, named as the bundle.

    Raises:
        BundleError: no bundle is there.
        BackendError: a package is missing, or an argument has no meaning.
    """
    check_packages()
    from ray import serve

    given = {"contexts": 1} | dict(args)
    bundle = given.pop("bundle", None)
    if bundle is None:
        raise BackendError("ray_app: expected the argument bundle=FOLDER.")
    opening = opening_of(given)
    name = open_bundle(str(bundle)).manifest.name
    return serve.deployment(Replica, name=name).bind(str(Path(bundle).absolute()), opening)


def opening_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn arguments, as text where they came from a command line, into fields of ``Opening``.

    Raises:
        BackendError: one that ``Opening`` does not have, or a number that is none.
    """
    opening = dict[str, Any]()
    for name, value in given.items():
        if name not in _KINDS:
            raise BackendError(f"ray_app: expected bundle, {', '.join(_KINDS)}; got {name!r}.")
        try:
            opening[name] = _KINDS[name](value)
        except (ValueError, TypeError) as error:
            raise BackendError(f"ray_app: {name}: expected a whole number, got {value!r}.") from error
    return opening


def check_packages() -> None:
    """Look whether what this module needs is installed.

    Raises:
        BackendError: a package is missing; the message says how to get it.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise BackendError(f"a Ray Serve application needs {name}. Run: pip install 'engineworks[ray]'")


def _below_prefix(scope: Any) -> Any:
    """Take the application's route prefix off the path, as Ray's proxy leaves it on."""
    return {**scope, "path": scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"}
