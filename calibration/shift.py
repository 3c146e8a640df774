"""The 255-level shift: what stands after a ReLU fills all of int8, with zero point 0 and without a uint8.

Such a tensor is never negative, and symmetric int8 leaves it 127 levels of 255. Take 128 steps off it before Q, in the
bias of the layer that makes it (a Clip's bounds move along), and give them back in the biases of the layers that read
it: the float function is the same. Where a reader pads with zeros, an explicit Pad writes what zero has become.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import Array, Floats, Graph, attribute
from engineworks.calibration.layers import Layer, read_bias, read_layer, read_weights, to_rows
from engineworks.calibration.placement import Placement
from engineworks.calibration.qdq import drop_unread, set_bias
from engineworks.calibration.weights import Rest, round_scales

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

HALF = 128
_MOVES = frozenset({"MaxPool", "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Shifted:
    """A float graph with shifted tensors, the scales that go with it, and by how much each tensor was moved.

    ``padded`` leads from what an explicit Pad writes to the tensor that it pads.
    """

    model: "ModelProto"
    scales: Mapping[str, float]
    moved: Mapping[str, float]
    padded: Mapping[str, str]

    def means(self, means: Mapping[str, Array]) -> dict[str, Array]:
        """Turn channel means of the graph that was given into those of this one; what a Pad adds is not counted."""
        found = {name: values - self.moved.get(name, 0.0) for name, values in means.items()}
        return found | {name: found[source] for name, source in self.padded.items() if source in found}


@dataclass
class _Part:
    """Tensors that move together, and the nodes around them."""

    tensors: set[str] = field(default_factory=set)
    origins: list["NodeProto"] = field(default_factory=list)
    makers: list[Layer] = field(default_factory=list)
    """Layers whose bias takes the shift off."""
    readers: list[tuple[Layer, str]] = field(default_factory=list)
    """Layers whose bias gives it back, each with the tensor it reads."""
    sums: list[Layer] = field(default_factory=list)
    """Layers whose bias gives it back to the sum that they end in."""


def shift(
    model: "ModelProto", placement: Placement, scales: Mapping[str, float], *, padded: bool = False, rest: Rest = "fp16"
) -> Shifted:
    """Move every tensor that can be moved; the graph computes the same function of its inputs.

    Args:
        model: the float32 graph that ``placement`` was made for.
        placement: which layers and tensors will be quantised.
        scales: tensor → step of the symmetric grid, the tensor's largest wanted magnitude / 127.
        padded: also move what a layer pads with zeros, by an explicit Pad.
        rest: the type that scales are stored in; the shift is 128 steps of the rounded scale.
    """
    graph = Graph(model)
    moved: dict[str, float] = {}
    found: dict[str, float] = dict(scales)
    biases: dict[str, Floats] = {}
    pads: list[tuple[Layer, str, float]] = []
    for tensor in placement.activations:
        part = None if tensor in moved else _part(graph, placement, tensor, padded)
        if part is None:
            continue
        roots = {placement.scale_of[name] for name in part.tensors if name in placement.activations}
        steps = {float(round_scales(np.array(scales[root] * 127 / 255), rest)) for root in roots}
        if len(steps) != 1:
            continue  # two scales: one shift cannot be 128 steps of both
        step = steps.pop()
        _account(graph, part, HALF * step, biases)
        _move_bounds(graph, part, HALF * step)
        pads.extend((layer, name, -HALF * step) for layer, name in part.readers if any(_pads(graph, layer) or ()))
        moved.update(dict.fromkeys(part.tensors, HALF * step))
        found.update(dict.fromkeys(roots, step))
    for name, change in biases.items():
        layer = _layer(graph, name)
        set_bias(graph, layer, read_bias(graph, layer) + change)
    padded_from = _write_pads(graph, pads, placement, found)
    drop_unread(graph.model)
    return Shifted(graph.model, found, moved, padded_from)


def _layer(graph: Graph, name: str) -> Layer:
    layer = read_layer(graph, graph.by_name[name])
    assert layer is not None, name
    return layer


def _part(graph: Graph, placement: Placement, tensor: str, padded: bool) -> _Part | None:
    """Gather everything that moves with a tensor, or None where something around it cannot follow."""
    part, waiting = _Part(), [tensor]
    while waiting:
        name = waiting.pop()
        if name in part.tensors:
            continue
        part.tensors.add(name)
        sources = _sources(graph, name, part)
        if sources is None or name in graph.outputs:
            return None
        waiting.extend(sources)
        for reader, position in graph.readers.get(name, ()):
            onward = _follow(graph, placement, part, (reader, position, name), padded)
            if onward is None:
                return None
            waiting.extend(onward)
    return part


def _sources(graph: Graph, name: str, part: _Part) -> list[str] | None:
    """Return what else must move for this tensor to move: its own source, or nothing at an origin."""
    node = graph.producer.get(name)
    if node is None:
        return None
    if node.op_type in _MOVES:
        return [node.input[0]]
    if node.op_type == "Concat":
        return list(node.input)
    if not _never_negative(graph, node) or not graph.sole_reader(node.input[0]):
        return None
    maker = _maker(graph, node.input[0])
    if maker is None:
        return None
    part.origins.append(node)
    part.makers.append(maker)
    return []


def _never_negative(graph: Graph, node: "NodeProto") -> bool:
    if node.op_type == "Relu":
        return True
    low = graph.constant(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
    return low is not None and low.size == 1 and float(low.reshape(())) == 0


def _maker(graph: Graph, name: str) -> Layer | None:
    """Return the layer whose bias moves a tensor: its producer, or what ends in the sum that it is."""
    node = graph.producer.get(name)
    if node is not None and node.op_type == "Add":
        sides = [_maker(graph, side) for side in node.input if graph.sole_reader(side)]
        return next((layer for layer in sides if layer is not None), None)
    layer = None if node is None else read_layer(graph, node)
    return layer if layer is not None and layer.takes_bias else None


def _follow(
    graph: Graph, placement: Placement, part: _Part, read: tuple["NodeProto", int, str], padded: bool
) -> list[str] | None:
    """Return the tensors that move because this node reads a moved one; None where it cannot bear that."""
    node, position, name = read
    if node.op_type in _MOVES and position == 0:
        return [node.output[0]]
    if node.op_type == "Concat":
        return [node.output[0]]
    if node.op_type == "Add":
        other = node.input[1 - position]
        layer = _maker(graph, other) if graph.sole_reader(other) else None
        part.sums.extend([layer] if layer is not None else [])
        return None if layer is None else []
    layer = read_layer(graph, node)
    if layer is None or position != 0 or not layer.takes_bias or node.name not in placement.layers:
        return None
    borders = _pads(graph, layer)
    if borders is None or (any(borders) and (not padded or layer.kind != "Conv")):
        return None
    part.readers.append((layer, name))
    return []


def _pads(graph: Graph, layer: Layer) -> list[int] | None:
    """Return a layer's zero padding, or None where the data's size decides it."""
    node = graph.by_name[layer.name]
    if attribute(node, "auto_pad", b"NOTSET") in {b"SAME_UPPER", b"SAME_LOWER"}:
        return None
    return list(attribute(node, "pads", [0]))


def _account(graph: Graph, part: _Part, amount: float, biases: dict[str, Floats]) -> None:
    """Note by how much each bias changes."""
    for layer in part.makers:
        _change(graph, biases, layer, np.float32(-amount))
    for layer in part.sums:
        _change(graph, biases, layer, np.float32(amount))
    for layer, _ in part.readers:
        sums = to_rows(read_weights(graph, layer), layer).sum(axis=1, dtype=np.float64) * layer.alpha
        _change(graph, biases, layer, (sums * amount).astype(np.float32))


def _change(graph: Graph, biases: dict[str, Floats], layer: Layer, change: Array | np.float32) -> None:
    known = biases.get(layer.name)
    biases[layer.name] = np.asarray((np.zeros_like(read_bias(graph, layer)) if known is None else known) + change)


def _move_bounds(graph: Graph, part: _Part, amount: float) -> None:
    """Let each ReLU or Clip end that much lower."""
    for node in part.origins:
        bounds = [0.0, None] if node.op_type == "Relu" else [_bound(graph, node, 1), _bound(graph, node, 2)]
        names = [
            "" if bound is None else graph.store(f"{node.name}_{side}", np.array(bound - amount, np.float32))
            for side, bound in zip(("least", "most"), bounds, strict=True)
        ]
        node.op_type = "Clip"
        source = node.input[0]
        node.ClearField("input")
        node.input.extend([source, *names] if names[1] else [source, names[0]])


def _bound(graph: Graph, node: "NodeProto", position: int) -> float | None:
    values = graph.constant(node.input[position]) if len(node.input) > position and node.input[position] else None
    return None if values is None else float(values.reshape(()))


def _write_pads(
    graph: Graph, pads: list[tuple[Layer, str, float]], placement: Placement, scales: dict[str, float]
) -> dict[str, str]:
    """Put a Pad of the shifted zero before each layer that pads; layers that pad alike share one."""
    from onnx import helper

    made: dict[tuple[str, tuple[int, ...]], str] = {}
    before: dict[str, NodeProto] = {}
    for layer, tensor, value in sorted(pads, key=lambda one: graph.nodes.index(graph.by_name[one[0].name])):
        node = graph.by_name[layer.name]
        borders = tuple(_pads(graph, layer) or ())
        if (tensor, borders) not in made:
            name = graph.fresh(f"{tensor}_padded")
            half = len(borders) // 2
            widths = np.array([0, 0, *borders[:half], 0, 0, *borders[half:]], np.int64)
            sizes = graph.store(f"{name}_widths", widths)
            filler = graph.store(f"{name}_value", np.array(value, np.float32))
            before[layer.name] = helper.make_node("Pad", [tensor, sizes, filler], [name], name=name)
            made[tensor, borders] = name
            scales[name] = scales[placement.scale_of[tensor]]
        node.input[0] = made[tensor, borders]
        next(item for item in node.attribute if item.name == "pads").ints[:] = [0] * len(borders)
    _insert(graph, before)
    return {name: tensor for (tensor, _), name in made.items()}


def _insert(graph: Graph, before: Mapping[str, "NodeProto"]) -> None:
    from onnx import NodeProto

    nodes = []
    for node in graph.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.extend([before[node.name], copy] if node.name in before else [copy])
    graph.model.graph.ClearField("node")
    graph.model.graph.node.extend(nodes)
