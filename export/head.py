"""A graph that takes pictures as they are: uint8, channels last, normalised inside it.

The head does in float32 what ``runtime.preprocessing.normalise`` does, in the same order, so that its answers are the
same bits. The Cast comes first: TensorRT-RTX transposes no uint8.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.inputs import InputSpec
from engineworks.runtime.preprocessing import Preprocessing, normalise

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_INSIDE = "normalised"


@dataclass(frozen=True)
class Head:
    """What to put before the one picture input of a graph."""

    preprocessing: Preprocessing

    def behind(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return what the graph's own first node takes: ``(N, C, H, W)`` float32 for ``(N, H, W, C)`` uint8."""
        return {name: normalise(array, self.preprocessing) for name, array in inputs.items()}


def seen_before(picture: InputSpec) -> InputSpec:
    """Return what stands before the head: ``(H, W, C)`` uint8 for ``(C, H, W)`` float32."""
    channels, height, width = picture.shape
    return InputSpec(picture.name, (height, width, channels), "uint8")


def behind_head(model: "ModelProto", head: Head | None) -> tuple[str, ...]:
    """Name the value that the network itself takes in a graph that ``with_head`` made; nothing for no head."""
    if head is None:
        return ()
    start = f"{model.graph.input[0].name}_{_INSIDE}"
    made = [name for node in model.graph.node for name in node.output if name.rstrip("_") == start]
    return (max(made, key=len),)


def with_head(model: "ModelProto", head: Head | None) -> "ModelProto":
    """Return a copy whose first input takes ``(N, H, W, C)`` uint8 under the same name; the model itself for None.

    Args:
        model: float32 or half; its first input is ``(N, C, H, W)`` float32.
        head: the mean and standard deviation, per channel.
    """
    from onnx import ModelProto, TensorProto

    if head is None:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    graph, picture = copy.graph, copy.graph.input[0]
    taken = _names(graph)
    inside = _free(f"{picture.name}_{_INSIDE}", taken)
    _rename(graph, picture.name, inside)
    nodes, constants = _normalising(picture.name, inside, head.preprocessing, taken)
    rest = [*graph.node]
    graph.ClearField("node")
    graph.node.extend([*nodes, *rest])
    graph.initializer.extend(constants)
    kind = picture.type.tensor_type
    channels, height, width = list(kind.shape.dim)[1:]
    axes = [kind.shape.dim[0], height, width, channels]
    kind.elem_type = TensorProto.UINT8
    kept = [axis.dim_param or axis.dim_value for axis in axes]
    kind.shape.ClearField("dim")
    for axis in kept:
        kind.shape.dim.add(**{"dim_param" if isinstance(axis, str) else "dim_value": axis})
    return copy


def _names(graph: "GraphProto") -> set[str]:
    """Return every name in use, of values and of nodes, those of inner graphs too."""
    found = {item.name for item in (*graph.initializer, *graph.input, *graph.output)}
    for node in graph.node:
        found.update((node.name, *node.input, *node.output))
        for inner in _inner(node):
            found |= _names(inner)
    return found


def _rename(graph: "GraphProto", old: str, new: str) -> None:
    """Let every node that reads ``old`` read ``new``; inner graphs see the values outside."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = new if name == old else name
        for inner in _inner(node):
            _rename(inner, old, new)


def _inner(node: "NodeProto") -> "Iterator[GraphProto]":
    for item in node.attribute:
        yield from item.graphs
        if item.HasField("g"):
            yield item.g


def _normalising(
    source: str, result: str, recipe: Preprocessing, taken: set[str]
) -> "tuple[list[NodeProto], list[TensorProto]]":
    """Write Cast, Transpose, and the three steps of ``normalise``."""
    from onnx import TensorProto, helper, numpy_helper

    channels = len(recipe.mean)
    values = {"scale": np.array(255, np.float32)} | {
        name: np.array(getattr(recipe, name), np.float32).reshape(1, channels, 1, 1) for name in ("mean", "std")
    }
    names = {name: _free(f"{source}_{name}", taken) for name in ("float", "first", "unit", "centred", *values)}
    nodes = [
        helper.make_node("Cast", [source], [names["float"]], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [names["float"]], [names["first"]], perm=[0, 3, 1, 2]),
        helper.make_node("Div", [names["first"], names["scale"]], [names["unit"]]),
        helper.make_node("Sub", [names["unit"], names["mean"]], [names["centred"]]),
        helper.make_node("Div", [names["centred"], names["std"]], [result]),
    ]
    for node in nodes:
        node.name = _free(f"node_{node.output[0]}", taken)
    return nodes, [numpy_helper.from_array(value, names[name]) for name, value in values.items()]


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free(f"{name}_", taken)
