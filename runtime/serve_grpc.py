"""The protocol by gRPC, beside HTTP in the same loop: the same models, queue, limits and refusals."""

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from typing import Any

from engineworks.runtime.oip_describe import model_config, model_metadata, server_metadata
from engineworks.runtime.oip_errors import Refusal, bad, refusal_of
from engineworks.runtime.oip_messages import PACKAGE, messages
from engineworks.runtime.serve_grpc_tensors import content_of, response_of
from engineworks.runtime.serve_infer import Inference
from engineworks.runtime.serve_limits import Share
from engineworks.runtime.serve_metrics import Metrics
from engineworks.runtime.serve_model import Served
from engineworks.runtime.serve_models import Models
from engineworks.runtime.serve_routes import Routes

_log = logging.getLogger("engineworks.serve")
_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
_CODES |= {413: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_OPEN = {"ServerLive", "ServerReady"}
Answer = Callable[[Any, Any], Awaitable[Any]]


class Grpc:
    """The service's calls, by name; each is given a message and the call's context, and returns a message."""

    def __init__(
        self, models: Models, routes: Routes, inference: Inference, metrics: Metrics, token: str | None
    ) -> None:
        self._models, self._routes, self._inference, self._metrics = models, routes, inference, metrics
        self._token = token
        self._kinds = messages()

    def calls(self) -> dict[str, tuple[str, Answer]]:
        """Return every call's kind of request, and what answers it."""
        return {
            "ServerLive": ("Empty", self._plain("Live", lambda _: {"live": True})),
            "ServerReady": ("Empty", self._plain("Ready", lambda _: {"ready": self._ready()})),
            "ModelReady": ("Name", self._plain("Ready", self._model_ready)),
            "ServerMetadata": ("Empty", self._plain("ServerMetadata", lambda _: server_metadata())),
            "ModelMetadata": ("Name", self._plain("ModelMetadata", self._metadata)),
            "ModelConfig": ("Name", self._plain("ConfigResponse", self._config)),
            "ModelStatistics": ("Name", self._plain("Statistics", self._statistics)),
            "RepositoryIndex": ("IndexRequest", self._plain("Index", self._index)),
            "RepositoryModelLoad": ("Control", self._load),
            "RepositoryModelUnload": ("Control", self._unload),
            "ModelInfer": ("InferRequest", self._infer),
        }

    def handler(self) -> Any:
        """Return what gRPC's server is given."""
        import grpc

        made = {
            name: grpc.unary_unary_rpc_method_handler(self._guarded(name, kind, answer))
            for name, (kind, answer) in self.calls().items()
        }
        made["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(f"{PACKAGE}.GRPCInferenceService", made)

    def _guarded(self, name: str, kind: str, answer: Answer) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def call(data: bytes, context: Any) -> bytes:
            try:
                if name not in _OPEN:
                    self._admit(context)
                made: bytes = (await answer(self._parsed(kind, data), context)).SerializeToString()
                return made
            except Exception as error:
                refusal = self._refused(error)
            await context.abort(_code(refusal), str(refusal))
            raise AssertionError("abort returned")

        return call

    async def _stream(self, parts: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        response = self._kinds["StreamResponse"]
        async for data in parts:
            try:
                self._admit(context)
                answer = await self._infer(self._parsed("InferRequest", data), context)
                yield response(infer_response=answer).SerializeToString()
            except Exception as error:
                yield response(error_message=str(self._refused(error))).SerializeToString()

    def _parsed(self, kind: str, data: bytes) -> Any:
        from google.protobuf.message import DecodeError

        try:
            return self._kinds[kind].FromString(data)
        except DecodeError as error:
            raise bad("the message is not what this call takes.") from error

    def _admit(self, context: Any) -> None:
        if self._token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        kind, _, token = (given if isinstance(given, str) else "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise Refusal(401, "token", "expected the metadata authorization: Bearer TOKEN with the server's token.")

    def _refused(self, error: Exception) -> Refusal:
        refusal = refusal_of(error)
        if refusal.status == 500:
            _log.error("call failed", exc_info=error)
        self._metrics.failed(refusal.reason, refusal.status, None)
        return refusal

    def _plain(self, kind: str, about: Callable[[Any], dict[str, Any]]) -> Answer:
        from google.protobuf import json_format

        async def answer(asked: Any, _: Any) -> Any:
            return json_format.ParseDict(about(asked), self._kinds[kind](), ignore_unknown_fields=True)

        return answer

    def _ready(self) -> bool:
        return self._models.ready() and not self._routes.draining

    def _model_ready(self, asked: Any) -> dict[str, Any]:
        """Tell it of a model that is not there too, as clients expect of this call."""
        try:
            return {"ready": not self._find(asked).failing and not self._routes.draining}
        except Refusal:
            return {"ready": False}

    def _find(self, asked: Any) -> Served:
        return self._models.find(asked.name, asked.version or None)

    def _metadata(self, asked: Any) -> dict[str, Any]:
        served = self._find(asked)
        versions = sorted(self._models.loaded[served.name], key=int)
        return model_metadata(served.name, versions, served.manifest, served.backend)

    def _config(self, asked: Any) -> dict[str, Any]:
        served = self._find(asked)
        return {"config": model_config(served.name, served.manifest, served.rules, served.joins, served.backend)}

    def _statistics(self, asked: Any) -> dict[str, Any]:
        chosen = [self._find(asked)] if asked.name else list(self._models.all())
        return {"model_stats": [served.measure.read(served.name, served.version) for served in chosen]}

    def _index(self, asked: Any) -> dict[str, Any]:
        return {"models": self._routes.repository.index(asked.ready)}

    async def _load(self, asked: Any, _: Any) -> Any:
        if asked.parameters:
            raise bad("parameters: a bundle carries its own files and configuration; none is taken from a request.")
        await self._routes.repository.load(asked.model_name)
        return self._kinds["Empty"]()

    async def _unload(self, asked: Any, _: Any) -> Any:
        await self._routes.repository.unload(asked.model_name)
        return self._kinds["Empty"]()

    async def _infer(self, asked: Any, context: Any) -> Any:
        with self._held(asked) as (served, share):
            share.grow(asked.ByteSize())
            content, rest = content_of(asked)
            outcome, request = await self._inference.infer_tensors(served, content, rest, context.time_remaining())
            return response_of(self._kinds, served, request, outcome)

    @contextmanager
    def _held(self, asked: Any) -> Any:
        served = self._models.find(asked.model_name, asked.model_version or None)
        share = Share(self._routes.budget)
        served.users += 1
        try:
            yield served, share
        finally:
            share.close()
            self._models.release(served)


def _code(refusal: Refusal) -> Any:
    import grpc

    return getattr(grpc.StatusCode, _CODES.get(refusal.status, "INTERNAL"))
