"""An inference request: its JSON, the bytes behind it, and what the model takes, brought together.

A body is JSON alone, or JSON of ``Inference-Header-Content-Length`` bytes with the tensors' bytes after it, in the
order of the inputs (the binary tensor data extension). Every length is checked before any is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from engineworks.runtime.checks import Contract
from engineworks.runtime.manifest import Manifest
from engineworks.runtime.oip_errors import bad
from engineworks.runtime.oip_json import (
    check_size,
    flag_field,
    object_field,
    objects_field,
    read_object,
    text_field,
    whole_field,
)
from engineworks.runtime.oip_tensors import declared, from_bytes, from_json

Array = npt.NDArray[Any]
_STATEFUL = ("sequence_id", "sequence_start", "sequence_end")
_LONGEST_ID = 256


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for: as bytes or as JSON, and how many classes of it; 0 for the scores themselves."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Request:
    """A request that fits the model.

    Attributes:
        id: the client's name for it, handed back; empty where it gave none.
        arrays: the inputs by name.
        rows: the size of the batch.
        wanted: the outputs to send.
        timeout: seconds that it may wait; None for the server's own limit.
    """

    id: str
    arrays: Mapping[str, Array]
    rows: int
    wanted: tuple[Wanted, ...]
    timeout: float | None


def header_length(header: bytes | None, body: int) -> int:
    """Return how many bytes of a body are JSON.

    Args:
        header: what ``Inference-Header-Content-Length`` says; None where it is not sent.
        body: the length of the body.

    Raises:
        Refusal: 400; not a whole number from 1 to the body's length.
    """
    if header is None:
        return body
    if not header.isdigit() or len(header) > 15 or not 1 <= int(header) <= body:
        told = header[:40].decode("latin-1")
        raise bad(f"Inference-Header-Content-Length: expected 1 to {body}, the body's length, got {told!r}.")
    return int(header)


def read_request(body: bytes, json_length: int, model: Manifest, rules: Contract, json_limit: int) -> Request:
    """Read an inference request.

    Args:
        body: the whole body, inflated.
        json_length: how many bytes of it are JSON; see ``header_length``.
        model: what the request is for.
        rules: the batches that it takes.
        json_limit: the most bytes of JSON.

    Raises:
        Refusal: 400 or 413, with the field, what was expected and what came.
    """
    check_size(json_length, json_limit)
    whole = memoryview(body)
    content = read_object(body if json_length == len(body) else whole[:json_length])
    return request_of(content, whole[json_length:], model, rules)


def request_of(content: dict[str, Any], rest: memoryview, model: Manifest, rules: Contract) -> Request:
    """Make a request of its JSON, read already, and of the bytes behind it; see ``read_request``."""
    asked = object_field(content, "parameters", "request")
    _refuse_state(asked)
    arrays = _inputs(content, rest, model, rules.largest)
    wanted = _outputs(content, model, bool(flag_field(asked, "binary_data_output", "parameters")))
    timeout = whole_field(asked, "timeout", "parameters")
    return Request(_id(content), arrays, batch_of(arrays), wanted, timeout / 1e6 if timeout else None)


def batch_of(arrays: Mapping[str, Array]) -> int:
    """Return the size of the batch."""
    first = next(iter(arrays.values()))
    return int(first.shape[0]) if first.ndim else 1


def _id(content: dict[str, Any]) -> str:
    given = content.get("id", "")
    if not isinstance(given, str) or len(given) > _LONGEST_ID:
        raise bad(f"expected 'id' to be a string of at most {_LONGEST_ID} characters.")
    return given


def _refuse_state(asked: dict[str, Any]) -> None:
    for name in _STATEFUL:
        if asked.get(name):
            raise bad(f"parameters: {name!r} is for models that keep state; none here does. Leave it out.")


def _inputs(content: dict[str, Any], rest: memoryview, model: Manifest, largest: int) -> dict[str, Array]:
    tensors = {tensor.name: tensor for tensor in model.inputs}
    arrays, at = dict[str, Array](), 0
    for item in objects_field(content, "inputs", len(tensors) + 16):
        name = text_field(item, "name", "an input")
        if name not in tensors:
            raise bad(f"input {name[:60]!r}: the model has none of that name, but {', '.join(tensors)}.")
        if name in arrays:
            raise bad(f"input {name!r} is given twice.")
        shape = declared(tensors[name], item.get("datatype"), item.get("shape"), largest)
        size = _binary_size(item, name)
        if size is None:
            arrays[name] = from_json(name, item["datatype"], shape, item.get("data"))
            continue
        if at + size > len(rest):
            raise bad(f"input {name!r}: binary_data_size is {size}, but only {len(rest) - at} bytes are left.")
        arrays[name] = from_bytes(name, item["datatype"], shape, rest[at : at + size])
        at += size
    if at != len(rest):
        raise bad(f"{len(rest) - at} bytes follow the last input; binary_data_size of all inputs says {at}.")
    if missing := tensors.keys() - arrays.keys():
        raise bad(f"expected the inputs {', '.join(tensors)}; {', '.join(sorted(missing))} is missing.")
    return arrays


def _binary_size(item: dict[str, Any], name: str) -> int | None:
    asked = object_field(item, "parameters", f"input {name!r}")
    if any(key.startswith("shared_memory") for key in asked):
        raise bad(f"input {name!r}: shared memory is not offered. Send the data in the request.")
    size = whole_field(asked, "binary_data_size", f"input {name!r}")
    if size is not None and "data" in item:
        raise bad(f"input {name!r}: expected 'data' or 'binary_data_size', got both.")
    return size


def _outputs(content: dict[str, Any], model: Manifest, binary: bool) -> tuple[Wanted, ...]:
    names = [tensor.name for tensor in model.outputs]
    asked = objects_field(content, "outputs", len(names) + 16)
    if not asked:
        return tuple(Wanted(name, binary) for name in names)
    found = dict[str, Wanted]()
    for item in asked:
        name = text_field(item, "name", "an output")
        if name not in names:
            raise bad(f"output {name[:60]!r}: the model has none of that name, but {', '.join(names)}.")
        if name in found:
            raise bad(f"output {name!r} is asked for twice.")
        found[name] = _wanted(item, name, binary)
    return tuple(found.values())


def _wanted(item: dict[str, Any], name: str, binary: bool) -> Wanted:
    where = f"output {name!r}"
    asked = object_field(item, "parameters", where)
    if any(key.startswith("shared_memory") for key in asked):
        raise bad(f"{where}: shared memory is not offered. Take the data from the answer.")
    own = flag_field(asked, "binary_data", where)
    return Wanted(name, binary if own is None else own, whole_field(asked, "classification", where) or 0)
