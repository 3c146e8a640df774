"""The weighted layers of a graph, Conv, ConvTranspose, Gemm and MatMul, seen as one thing.

Each is rows of weights, one for every output channel, times a window of its input.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import Array, Floats, Graph, attribute, standard

if TYPE_CHECKING:
    from onnx import NodeProto

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """A weighted node whose weights are constant, with what the corrections must know of it."""

    name: str
    kind: str
    data: str
    """The tensor it reads."""
    weight: str
    bias: str
    """Empty where there is none."""
    output: str
    axis: int
    """The axis of the weight tensor that counts the output channels."""
    groups: int
    alpha: float
    """What the product is multiplied with (Gemm), else 1."""
    beta: float
    """What the bias is multiplied with (Gemm), else 1."""
    takes_bias: bool
    """A constant bias stands there or can be added as the third input."""


def read_layer(graph: Graph, node: "NodeProto") -> Layer | None:
    """Return the layer that a node is, or None where it is none or its weights are not constant."""
    if node.op_type not in WEIGHTED or not standard(node) or not graph.is_constant(node.input[1]):
        return None
    if graph.is_constant(node.input[0]) or attribute(node, "transA", 0):
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    return Layer(
        name=node.name,
        kind=node.op_type,
        data=node.input[0],
        weight=node.input[1],
        bias=bias,
        output=node.output[0],
        axis=_axis(node),
        groups=int(attribute(node, "group", 1)),
        alpha=float(attribute(node, "alpha", 1.0)),
        beta=float(attribute(node, "beta", 1.0)),
        takes_bias=node.op_type != "MatMul" and (not bias or graph.is_constant(bias)),
    )


def _axis(node: "NodeProto") -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def to_rows(values: Array, layer: Layer) -> Array:
    """Lay weights out as ``(channels, width)``: one row for each channel of ``layer.axis``."""
    return np.moveaxis(values, layer.axis, 0).reshape(values.shape[layer.axis], -1)


def from_rows(rows: Array, layer: Layer, shape: tuple[int, ...]) -> Array:
    """Undo ``to_rows`` for a weight tensor of the given shape."""
    turned = (shape[layer.axis], *(size for axis, size in enumerate(shape) if axis != layer.axis))
    return np.ascontiguousarray(np.moveaxis(rows.reshape(turned), 0, layer.axis))


def read_weights(graph: Graph, layer: Layer) -> Floats:
    """Return the layer's weights in their own layout, float32."""
    values = graph.constant(layer.weight)
    assert values is not None, layer.name
    return np.asarray(values, np.float32)


def read_bias(graph: Graph, layer: Layer) -> Floats:
    """Return what the layer adds to each output channel, ``(channels,)``; zeros where it has no constant bias."""
    values = graph.constant(layer.bias) if layer.bias else None
    channels = read_weights(graph, layer).shape[layer.axis] * (layer.groups if layer.kind == "ConvTranspose" else 1)
    flat = np.zeros(1, np.float32) if values is None else np.asarray(values, np.float32).ravel()
    return np.ascontiguousarray(np.broadcast_to(flat * np.float32(layer.beta), (channels,)))
