"""The model repository extension: what there is, and, where the operator allows it, loading and unloading by name."""

import asyncio
from typing import Any

from engineworks.runtime.errors import EngineworksError
from engineworks.runtime.oip_errors import Refusal, bad
from engineworks.runtime.oip_json import flag_field, object_field, read_object
from engineworks.runtime.serve_metrics import Metrics
from engineworks.runtime.serve_models import Models
from engineworks.runtime.serve_reply import Reply, json_reply


class Repository:
    """Answers ``/v2/repository/…``; ``control`` is whether models may be loaded and unloaded."""

    def __init__(self, models: Models, metrics: Metrics, control: bool) -> None:
        self._models, self._metrics, self._control = models, metrics, control
        self._turn = asyncio.Lock()

    async def answer(self, parts: list[str], body: bytes) -> Reply:
        """Answer an address below ``/v2/repository``.

        Raises:
            Refusal: 400, 403, or 404.
        """
        content = read_object(body) if body.strip() else {}
        if parts == ["index"]:
            return json_reply(self.index(flag_field(content, "ready", "request") or False))
        if len(parts) != 3 or parts[0] != "models" or parts[2] not in {"load", "unload"}:
            raise Refusal(404, "unknown_address", "there is nothing at this address of the repository.")
        if object_field(content, "parameters", "request").keys() - {"unload_dependents"}:
            raise bad("parameters: a bundle carries its own files and configuration; none is taken from a request.")
        await (self.load(parts[1]) if parts[2] == "load" else self.unload(parts[1]))
        return json_reply({})

    def index(self, only_ready: bool) -> list[dict[str, Any]]:
        """List every version that is configured or lies in the repository folder."""
        self._models.rescan()
        rows = [self._row(name, version) for name, version in sorted(self._models.sources)]
        return [row for row in rows if not only_ready or row["state"] == "READY"]

    async def load(self, name: str) -> None:
        """Load every version of a model, or load it anew.

        Raises:
            Refusal: 403 not allowed, 404 unknown, 400 the bundle was refused; what was served is served on.
        """
        self._allow()
        async with self._turn:
            self._models.rescan()
            keys = [key for key in sorted(self._models.sources) if key[0] == name]
            if not keys:
                raise Refusal(404, "unknown_model", "the repository has no such model. POST /v2/repository/index.")
            for key in keys:
                try:
                    await self._models.load(key)
                except EngineworksError as error:
                    self._metrics.loaded("refused")
                    raise bad(f"version {key[1]} was refused: {_public(error)}. The log says more.") from error
                self._metrics.loaded("ok")

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests that are under way are still answered.

        Raises:
            Refusal: 403 not allowed, 404 not loaded.
        """
        self._allow()
        async with self._turn:
            if name not in self._models.loaded:
                raise Refusal(404, "unknown_model", "no such model is loaded.")
            self._models.unload(name)

    def _allow(self) -> None:
        if not self._control:
            raise Refusal(403, "not_allowed", "loading is off. Start the server with --allow-repository-control.")

    def _row(self, name: str, version: str) -> dict[str, Any]:
        served = self._models.loaded.get(name, {}).get(version)
        if served is None:
            reason = "refused; the log says why" if (name, version) in self._models.refused else "not loaded"
            return {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason}
        state = "UNAVAILABLE" if served.failing else "READY"
        return {"name": name, "version": version, "state": state, "reason": ""}


def _public(error: EngineworksError) -> str:
    """Say what kind of fault a bundle has; its own words name files."""
    return {
        "BundleError": "the bundle is damaged, absent or of a later schema",
        "InputError": "its inputs do not fit",
    }.get(type(error).__name__, "no backend here can run it")
