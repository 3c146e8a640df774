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
    """Serialise the graph with its weights inside, in the order in which it names them."""
    from onnx import ModelProto, TensorProto

    full = ModelProto()
    _copy_but_weights(model, full)
    for tensor in model.graph.initializer:
        if not is_reference(tensor):
            full.graph.initializer.append(tensor)
            continue
        inside = full.graph.initializer.add()
        inside.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
        inside.raw_data = weights[tensor.name].tobytes()
    content: bytes = full.SerializeToString()
    return content


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
