"""Write a Q/DQ graph as TensorRT wants it: int8 weights behind a DequantizeLinear, Q and DQ on what is placed.

The graph computes in float32 around them, and ONNX Runtime without optimisation is its reference. Its scales are
already numbers that FP16 holds where the rest is to become FP16, so casting it then loses nothing of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import MODULE_KEY, Array, Graph, module_of
from engineworks.calibration.layers import Layer, read_layer
from engineworks.calibration.placement import Placement
from engineworks.calibration.weights import Int8Layer, Rest, round_layer, round_scales
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OLDEST_OPSET = {"fp32": 13, "fp16": 19}  # QuantizeLinear per channel since 13, with FP16 scales since 19
_ZERO = "int8_zero"


@dataclass
class _Writer:
    """The graph in the making, and the nodes that go before each of its nodes."""

    graph: Graph
    rest: Rest
    before: dict[str, list["NodeProto"]]
    stored_zeros: dict[int, str]

    def zeros(self, channels: int) -> str:
        """Return the name of the zero point: one for all tensors (0 channels), one for each width of weights."""
        if channels not in self.stored_zeros:
            name = f"{_ZERO}_{channels}" if channels else _ZERO
            self.stored_zeros[channels] = self.graph.store(name, np.zeros(channels or (), np.int8))
        return self.stored_zeros[channels]

    def node(self, kind: str, inputs: list[str], output: str, module: str, axis: int | None = None) -> "NodeProto":
        """Make a Q or DQ node that carries the module which it belongs to."""
        from onnx import helper

        made = helper.make_node(kind, inputs, [output], name=self.graph.fresh(f"{kind}_{inputs[0]}"))
        if axis is not None:
            made.attribute.append(helper.make_attribute("axis", axis))
        if module:
            made.metadata_props.add(key=MODULE_KEY, value=module)
        return made


def insert_qdq(
    model: "ModelProto",
    placement: Placement,
    scales: Mapping[str, float],
    *,
    weights: Mapping[str, Int8Layer] | None = None,
    rest: Rest = "fp16",
) -> "ModelProto":
    """Return a float32 copy of ``model`` with Q/DQ where ``placement`` says, zero point 0 and int8 throughout.

    Args:
        model: the float32 graph that ``placement`` was made for.
        placement: what to quantise.
        scales: tensor → step of its grid, for every tensor that ``placement.scale_of`` leads to.
        weights: node → its weights; those of others are rounded to nearest.
        rest: what the graph will be cast to afterwards (``engineworks.export.half.to_half``): the scales are rounded
            to numbers which that type holds.

    Raises:
        ExportError: an operator set without such Q/DQ, a tensor without a scale, or a scale that is no positive number.
    """
    writer = _Writer(Graph(model), rest, {}, {})
    if writer.graph.opset < OLDEST_OPSET[rest]:
        raise ExportError(
            f"opset {writer.graph.opset}: expected {OLDEST_OPSET[rest]} or later for int8 beside {rest}. "
            "Export with a later --opset."
        )
    for tensor, readers in placement.activations.items():
        source = placement.scale_of[tensor]
        if source not in scales:
            raise ExportError(f"tensor {source}: no scale was given. Observe every tensor that the placement names.")
        _quantise_tensor(writer, tensor, readers, checked_scale(source, scales[source], rest))
    for name in placement.layers:
        layer = read_layer(writer.graph, writer.graph.by_name[name])
        assert layer is not None, name
        given = (weights or {}).get(name)
        _quantise_layer(writer, layer, given or round_layer(writer.graph, layer, rest))
    _assemble(writer)
    return writer.graph.model


def checked_scale(tensor: str, scale: float, rest: Rest) -> float:
    """Round a tensor's scale to what ``rest`` holds.

    Raises:
        ExportError: zero, negative, infinite or NaN.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ExportError(f"tensor {tensor}: expected a positive scale, got {scale}. Was it all zeros, or overflowing?")
    return float(round_scales(np.array(scale), rest))


def _quantise_tensor(writer: _Writer, tensor: str, readers: tuple[tuple[str, int], ...], scale: float) -> None:
    graph = writer.graph
    first = min((graph.by_name[name] for name, _ in readers), key=graph.nodes.index)
    module = module_of(graph.producer.get(tensor)) or module_of(first)
    stored, zero = graph.store(f"{tensor}_scale", np.array(scale, np.float32)), writer.zeros(0)
    steps, values = graph.fresh(f"{tensor}_int8"), graph.fresh(f"{tensor}_dequantised")
    writer.before.setdefault(first.name, []).extend(
        [
            writer.node("QuantizeLinear", [tensor, stored, zero], steps, module),
            writer.node("DequantizeLinear", [steps, stored, zero], values, module),
        ]
    )
    for name, position in readers:
        graph.by_name[name].input[position] = values


def _quantise_layer(writer: _Writer, layer: Layer, given: Int8Layer) -> None:
    graph = writer.graph
    node = graph.by_name[layer.name]
    stored = graph.store(f"{layer.weight}_int8", given.values)
    scales = graph.store(f"{layer.weight}_scale", np.asarray(given.scales, np.float32))
    values = graph.fresh(f"{layer.weight}_dequantised")
    zero = writer.zeros(len(given.scales))
    made = writer.node("DequantizeLinear", [stored, scales, zero], values, module_of(node), layer.axis)
    writer.before.setdefault(layer.name, []).append(made)
    node.input[1] = values
    if given.bias is not None:
        set_bias(writer.graph, layer, given.bias)


def set_bias(graph: Graph, layer: Layer, bias: Array) -> None:
    """Give a layer a bias of its own: ``(output channels,)``, what is to be added to its sums."""
    from onnx import numpy_helper

    node = graph.by_name[layer.name]
    values = np.asarray(bias / layer.beta, np.float32)
    if layer.bias in graph.stored and graph.sole_reader(layer.bias):
        graph.stored[layer.bias].CopyFrom(numpy_helper.from_array(values, layer.bias))
        return
    name = graph.store(layer.bias or f"{layer.name}_bias", values)
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)


def set_weights(graph: Graph, layer: Layer, weights: Array) -> None:
    """Give a layer weights of its own, in its own layout."""
    from onnx import numpy_helper

    values = np.asarray(weights, np.float32)
    if layer.weight in graph.stored and graph.sole_reader(layer.weight):
        graph.stored[layer.weight].CopyFrom(numpy_helper.from_array(values, layer.weight))
    else:
        graph.by_name[layer.name].input[1] = graph.store(layer.weight, values)


def _assemble(writer: _Writer) -> None:
    """Put the new nodes before their readers, and drop the float weights that nobody reads any more."""
    graph = writer.graph.model.graph
    nodes = [part for node in writer.graph.nodes for part in (*writer.before.get(node.name, ()), node)]
    copies = [_copy(node) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    drop_unread(writer.graph.model)


def drop_unread(model: "ModelProto") -> None:
    """Remove initializers and Constant nodes that no node reads and that are no output."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    nodes = [node for node in graph.node if node.op_type != "Constant" or read.intersection(node.output)]
    if len(kept) < len(graph.initializer):
        graph.ClearField("initializer")
        graph.initializer.extend(kept)
    if len(nodes) < len(graph.node):
        graph.ClearField("node")
        graph.node.extend(nodes)


def _copy(node: "NodeProto") -> "NodeProto":
    from onnx import NodeProto

    made = NodeProto()
    made.CopyFrom(node)
    return made


def quantised_tensors(model: "ModelProto") -> Iterator[tuple[str, float]]:
    """Yield each tensor of a Q/DQ graph that is quantised while it runs, with its scale."""
    graph = Graph(model)
    for node in graph.nodes:
        scale = graph.constant(node.input[1]) if node.op_type == "QuantizeLinear" else None
        if scale is not None and scale.size == 1:
            yield node.input[0], float(scale.reshape(()))
