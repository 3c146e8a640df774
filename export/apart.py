"""A graph whose large weights lie beside it, in memory that it shares with PyTorch.

A protocol buffer copies a weight whenever one is set, read, checked or serialised: half a gigabyte each time for
VGG-16. So a large weight stays a NumPy array, the graph refers to it by name (ONNX's external data, with nothing on a
disk), and only the graph that ships is written out with its weights inside.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

Weights = Mapping[str, npt.NDArray[Any]]
LARGE = 1 << 18  # bytes
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # fields of ModelProto, GraphProto and TensorProto, onnx.proto
_LAST = 1 << 29  # no field has this number
_BYTES = 2  # protobuf's type of a field that has a length


def part(model: "ModelProto", known: Weights) -> "tuple[ModelProto, Weights]":
    """Return the graph without its large float32 weights, and those weights by name.

    Args:
        model: a graph with its weights inside; not changed.
        known: arrays that may be the same ones, by name, such as PyTorch's own: where bytes and shape are, they are
            taken, and memory holds the weight once.
    """
    from onnx import ModelProto

    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    apart, weights = ModelProto(), dict[str, npt.NDArray[Any]]()
    _copy_but_weights(model, apart)
    for tensor in model.graph.initializer:
        data = tensor.raw_data if tensor.data_type == 1 and tensor.name not in fixed else b""
        if len(data) < LARGE:
            apart.graph.initializer.append(tensor)
            continue
        array = np.frombuffer(data, "<f4").reshape(tuple(tensor.dims))
        same = known.get(tensor.name)
        weights[tensor.name] = same if same is not None and _equal(array, same) else array
        apart.graph.initializer.append(_reference(tensor))
    return apart, weights


def whole(model: "ModelProto", weights: Weights) -> bytes:
    """Serialise the graph with its weights inside: the bytes that its own serialisation would give.

    The fields of a message stand in the order of their numbers, each behind its number, type and length
    (protobuf.dev, "Encoding"); so a weight is put where it belongs without another copy of it being made.
    """
    graph = [_between(model.graph, 0, _INITIALIZER)]
    for tensor in model.graph.initializer:
        content = [tensor.SerializeToString()]
        if is_reference(tensor):
            data = np.ascontiguousarray(weights[tensor.name]).reshape(-1).view(np.uint8).data
            content = [_between(tensor, 0, _RAW_DATA), _before(_RAW_DATA, len(data)), data]
        graph += [_before(_INITIALIZER, sum(map(len, content))), *content]
    graph.append(_between(model.graph, _INITIALIZER + 1, _LAST))
    inside = _before(_GRAPH, sum(map(len, graph)))
    return b"".join([_between(model, 0, _GRAPH), inside, *graph, _between(model, _GRAPH + 1, _LAST)])


def _between(message: Any, first: int, end: int) -> bytes:
    """Serialise those fields of a message whose numbers lie in ``range(first, end)``."""
    some = type(message)()
    for field, value in message.ListFields():
        if first <= field.number < end:
            _copy_field(field.name, value, some)
    content: bytes = some.SerializeToString()
    return content


def _before(field: int, length: int) -> bytes:
    """Return what stands before a field of that many bytes: its number and type, and the length, as varints."""
    written = bytearray()
    for number in (field << 3 | _BYTES, length):
        rest = number
        while rest > 0x7F:
            written.append(rest & 0x7F | 0x80)
            rest >>= 7
        written.append(rest)
    return bytes(written)


def without_references(model: "ModelProto") -> "ModelProto":
    """Copy the graph with its large weights turned into inputs, as a checker may see it: it looks for no file."""
    from onnx import ModelProto, helper

    bare = ModelProto()
    _copy_but_weights(model, bare)
    for tensor in model.graph.initializer:
        if is_reference(tensor):
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            bare.graph.initializer.append(tensor)
    return bare


def is_reference(tensor: "TensorProto") -> bool:
    """Tell whether a weight lies beside its graph."""
    return tensor.data_location == tensor.EXTERNAL


def _copy_but_weights(model: "ModelProto", target: "ModelProto") -> None:
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        _copy_field(field.name, value, target)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(field.name, value, target.graph)


def _copy_field(name: str, value: Any, target: Any) -> None:
    if hasattr(value, "extend") or hasattr(value, "append"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _reference(tensor: "TensorProto") -> "TensorProto":
    from onnx import TensorProto

    reference = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    reference.data_location = TensorProto.EXTERNAL
    reference.external_data.add(key="location", value=tensor.name)
    return reference


def _equal(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Tell whether two arrays hold the same bytes; NaN and the sign of zero count."""
    if (left.shape, left.dtype) != (right.shape, right.dtype) or not right.flags.c_contiguous:
        return False
    return np.array_equal(left.reshape(-1).view(np.uint32), right.reshape(-1).view(np.uint32))
