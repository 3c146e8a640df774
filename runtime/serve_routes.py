"""Every address of the server, and what answers it (protocol v2, "HTTP/REST", and its extensions)."""

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engineworks.runtime.oip_describe import model_config, model_metadata, server_metadata
from engineworks.runtime.oip_errors import Refusal, bad
from engineworks.runtime.serve_body import read_body
from engineworks.runtime.serve_infer import Inference
from engineworks.runtime.serve_limits import Budget, Share
from engineworks.runtime.serve_metrics import CONTENT_TYPE, Metrics
from engineworks.runtime.serve_model import Served
from engineworks.runtime.serve_models import Models
from engineworks.runtime.serve_openapi import openapi
from engineworks.runtime.serve_page import page, status
from engineworks.runtime.serve_reply import Reply, json_reply
from engineworks.runtime.serve_repository import Repository

OPEN = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
"""What is answered without a token: the page holds no data, and probes send none."""
_MOST_CLASSES = 1000


@dataclass(eq=False, slots=True)
class Call:
    """A request on its way: ``served`` is the version it holds, ``share`` what it holds of the memory for bodies."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    scope: Any
    receive: Callable[[], Awaitable[Any]]
    served: Served | None = None
    share: Share | None = None
    models: Models | None = field(default=None, repr=False)

    def close(self) -> None:
        """Let go of what it holds."""
        if self.share is not None:
            self.share.close()
        if self.served is not None and self.models is not None:
            self.models.release(self.served)


class Routes:
    """The addresses. ``draining`` is set when the server is about to stop: not ready, but still answering."""

    def __init__(self, models: Models, inference: Inference, metrics: Metrics, control: bool) -> None:
        self._models, self._inference, self._metrics = models, inference, metrics
        self._budget = Budget(inference.limits.memory)
        self.repository = Repository(models, metrics, control)
        self.draining = False
        policy = [(b"content-security-policy", _POLICY)]
        self._pages: dict[str, Callable[[], Reply]] = {
            "": lambda: Reply(200, page(), b"text/html; charset=utf-8", policy),
            "/v2": lambda: json_reply(server_metadata()),
            "/v2/health/live": lambda: json_reply({"live": True}),
            "/v2/health/ready": self._ready,
            "/v2/models/stats": self._stats,
            "/status.json": lambda: json_reply(status(models, draining=self.draining)),
            "/metrics": lambda: Reply(200, metrics.text(), CONTENT_TYPE),
            "/openapi.json": lambda: json_reply(openapi(tuple(sorted(models.loaded)))),
        }

    @property
    def budget(self) -> Budget:
        """What all bodies together hold."""
        return self._budget

    async def answer(self, call: Call) -> Reply:
        """Answer a request.

        Raises:
            Refusal: and every error that ``refusal_of`` knows.
        """
        parts = call.path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and parts[3:] != ["stats"]:
            return await self._model(call, parts[3:])
        if parts[:3] == ["", "v2", "repository"]:
            _expect(call, "POST")
            return await self.repository.answer(parts[3:], await self._body(call))
        _expect(call, "GET")
        return self._plain(call.path)

    def _plain(self, path: str) -> Reply:
        made = self._pages.get(path.rstrip("/"))
        if made is None:
            raise Refusal(
                404, "unknown_address", "there is nothing at this address. GET /openapi.json lists what there is."
            )
        return made()

    def _ready(self) -> Reply:
        ready = self._models.ready() and not self.draining
        return json_reply({"ready": ready}, 200 if ready else 503)

    def _stats(self) -> Reply:
        return json_reply({"model_stats": [one.measure.read(one.name, one.version) for one in self._models.all()]})

    async def _model(self, call: Call, parts: list[str]) -> Reply:
        name, version, rest = parts[0], None, parts[1:]
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        action = rest[0] if len(rest) == 1 else "/".join(rest)
        if action in {"infer", "classify"}:
            _expect(call, "POST")
            self._hold(call, name, version)
            return await (self._infer(call) if action == "infer" else self._classify(call))
        if action not in {"", "ready", "config", "stats"}:
            raise Refusal(404, "unknown_address", "there is nothing at this address of a model.")
        _expect(call, "GET")
        return self._about(self._models.find(name, version), action, version)

    def _about(self, served: Served, action: str, version: str | None) -> Reply:
        name, m = served.name, served.manifest
        if action == "ready":
            ready = not served.failing and not self.draining
            return json_reply({"name": name, "ready": ready}, 200 if ready else 503)
        if action == "config":
            return json_reply(model_config(name, m, served.rules, served.joins, served.backend))
        versions = sorted(self._models.loaded[name], key=int)
        if action == "stats":
            chosen = [self._models.find(name, one) for one in (versions if version is None else [version])]
            return json_reply({"model_stats": [one.measure.read(name, one.version) for one in chosen]})
        return json_reply(model_metadata(name, versions, m, served.backend))

    def _hold(self, call: Call, name: str, version: str | None) -> None:
        served = self._models.find(name, version)
        served.users += 1
        call.served, call.models = served, self._models

    async def _infer(self, call: Call) -> Reply:
        body = await self._body(call)
        assert call.served is not None and call.share is not None
        return await self._inference.infer(call.served, body, call.headers, call.share, call.scope)

    async def _classify(self, call: Call) -> Reply:
        k = _classes(call.scope["query_string"])
        body = await self._body(call)
        assert call.served is not None
        return await self._inference.classify(call.served, body, k, call.scope)

    async def _body(self, call: Call) -> bytes:
        call.share = Share(self._budget)
        return await read_body(call.receive, call.headers, self._inference.limits, call.share)


_POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    b"img-src blob: data:"
)


def _expect(call: Call, method: str) -> None:
    if call.method != method and not (method == "GET" and call.method == "HEAD"):
        raise Refusal(405, "method", f"expected {method}, got {call.method[:20]}.")


def _classes(query: bytes) -> int:
    values = (
        urllib.parse.parse_qs(query.decode("latin-1"), max_num_fields=16) if query.count(b"&") < 16 else {"k": [""]}
    )
    given = values.get("k", ["5"])[-1]
    if not (given.isascii() and given.isdigit()) or not 1 <= int(given[:6]) <= _MOST_CLASSES:
        raise bad(f"k: expected 1 to {_MOST_CLASSES}, got {given[:20]!r}.")
    return int(given)
