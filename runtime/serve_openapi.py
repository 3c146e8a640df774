"""The server's interface as an OpenAPI 3.1 document, made of the same addresses that ``serve_routes`` answers."""

from functools import cache
from typing import Any

_ERRORS = {
    "400": "malformed, or does not fit the model",
    "401": "no token, or a wrong one",
    "403": "not allowed here",
    "404": "no such model, version or address",
    "405": "another method",
    "408": "the request did not arrive in time",
    "413": "larger than the server takes",
    "415": "an encoding that is not known",
    "503": "busy, draining, or the backend is dead",
    "504": "its time passed while it waited",
}
_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"}}
_K = {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}}
_LENGTH = {"name": "Inference-Header-Content-Length", "in": "header", "schema": {"type": "integer", "minimum": 1}}
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": 256},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "minLength": 1}, "parameters": {"type": "object"}},
            },
        },
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {"outputs": {"type": "array", "items": _TENSOR}, "id": {"type": "string"}},
}


@cache
def openapi(models: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the document; ``models`` are the names that a client may use now."""
    named = _NAME | ({"schema": {"type": "string", "enum": list(models)}} if models else {})
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("The server's name, version and extensions")},
        "/v2/health/live": {"get": _operation("The process answers")},
        "/v2/health/ready": {"get": _operation("Every model answers, and the server is not draining")},
        "/v2/models/stats": {"get": _operation("Statistics of every model")},
        "/v2/repository/index": {"post": _operation("What there is", body=_json({"type": "object"}), needed=False)},
        "/status.json": {"get": _operation("What the page at / shows")},
        "/metrics": {"get": _operation("Prometheus metrics", answer={"text/plain": {"schema": {"type": "string"}}})},
    }
    for action in ("load", "unload"):
        made = _operation(
            f"{action.capitalize()} a model, where the operator allows it", body=_json({"type": "object"})
        )
        paths[f"/v2/repository/models/{{model}}/{action}"] = {"parameters": [named], "post": made}
    for start, parameters in (
        ("/v2/models/{model}", [named]),
        ("/v2/models/{model}/versions/{version}", [named, _VERSION]),
    ):
        paths |= {start + end: {"parameters": parameters, **what} for end, what in _of_a_model().items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "engineworks serve-model: Open Inference Protocol v2", "version": "2"},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _of_a_model() -> dict[str, dict[str, Any]]:
    bytes_body: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
    infer = _operation(
        "Run the network",
        body=_json(_REQUEST) | {"application/octet-stream": bytes_body},
        answer=_json(_ANSWER) | {"application/octet-stream": bytes_body},
    )
    infer["parameters"] = [_LENGTH]
    pictures = dict.fromkeys(("image/jpeg", "image/png", "image/webp"), bytes_body)
    classify = _operation("The best classes of the picture that is the body", body=pictures)
    classify["parameters"] = [_K]
    return {
        "": {"get": _operation("Its inputs and outputs")},
        "/ready": {"get": _operation("It answers")},
        "/config": {"get": _operation("Its configuration")},
        "/stats": {"get": _operation("Its statistics")},
        "/infer": {"post": infer},
        "/classify": {"post": classify},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    what: str, body: dict[str, Any] | None = None, answer: dict[str, Any] | None = None, *, needed: bool = True
) -> dict[str, Any]:
    error = _json({"$ref": "#/components/schemas/Error"})
    responses: dict[str, Any] = {"200": {"description": "done", "content": answer or _json({})}}
    responses |= {status: {"description": why, "content": error} for status, why in _ERRORS.items()}
    operation: dict[str, Any] = {"summary": what, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": needed, "content": body}
    return operation
