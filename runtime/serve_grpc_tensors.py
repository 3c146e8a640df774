"""Requests and answers of gRPC, to and from what HTTP's are made of, so that one place checks both."""

from typing import Any

from engineworks.runtime.oip_dtypes import protocol_name
from engineworks.runtime.oip_errors import bad
from engineworks.runtime.oip_request import Request
from engineworks.runtime.oip_response import byte_strings, classes
from engineworks.runtime.serve_model import Outcome, Served

_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def content_of(asked: Any) -> tuple[dict[str, Any], memoryview]:
    """Return a request as its JSON would be, and the bytes that would follow it.

    Raises:
        Refusal: 400; raw contents for some inputs only, or numbers where the datatype has no field for them.
    """
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise bad(f"raw_input_contents: expected one for each of {len(asked.inputs)} inputs, got {len(raw)}.")
    inputs = [_input(item, raw[number] if raw else None) for number, item in enumerate(asked.inputs)]
    outputs = [{"name": item.name, "parameters": _parameters(item.parameters)} for item in asked.outputs]
    content = {"id": asked.id, "parameters": _parameters(asked.parameters), "inputs": inputs, "outputs": outputs}
    return content, memoryview(raw[0] if len(raw) == 1 else b"".join(raw))


def _input(item: Any, raw: bytes | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": item.name, "datatype": item.datatype, "shape": list(item.shape)}
    asked = _parameters(item.parameters)
    if raw is not None:
        if item.HasField("contents"):
            raise bad(f"input {item.name[:60]!r}: expected contents or raw_input_contents, got both.")
        return made | {"parameters": asked | {"binary_data_size": len(raw)}}
    field = _FIELDS.get(item.datatype)
    if field is None:
        raise bad(f"input {item.name[:60]!r}: {item.datatype[:20]} goes into raw_input_contents alone.")
    return made | {"parameters": asked, "data": list(getattr(item.contents, field))}


def _parameters(entries: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        chosen = entry.value.WhichOneof("choice")
        if chosen is not None:
            found[entry.key] = getattr(entry.value, chosen)
    return found


def response_of(kinds: dict[str, Any], served: Served, request: Request, outcome: Outcome) -> Any:
    """Make the answer's message; every output's data is raw.

    Raises:
        Refusal: 400; classes of an output that has none.
    """
    answer = kinds["InferResponse"](model_name=served.name, model_version=served.version, id=request.id)
    for want in request.wanted:
        array = outcome.outputs[want.name]
        if want.classes:
            rows = classes(want.name, array, want.classes, served.manifest)
            answer.outputs.add(name=want.name, datatype="BYTES", shape=[len(rows), len(rows[0])])
            answer.raw_output_contents.append(byte_strings([text for row in rows for text in row]))
        else:
            answer.outputs.add(name=want.name, datatype=protocol_name(array.dtype.name), shape=list(array.shape))
            answer.raw_output_contents.append(array.tobytes())
    return answer
