"""Equalise channels: what one scale for a whole tensor leaves coarse in quiet channels, the weights take up.

An activation has one scale, weights have one for each output channel. So a quiet channel is made louder by the layers
that write it, at no cost, and quieter again by the layers that read it; between them stand only operators that let a
positive factor through, and the float function stays (Nagel et al., Data-Free Quantization Through Weight Equalization
and Bias Correction, 2019, section 4.1; here for all the tensors that residual sums tie together). What a ReLU6 cuts
cannot follow: its bound is one number for all channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import Array, Floats, Graph, attribute
from engineworks.calibration.layers import Layer, read_bias, read_layer, read_weights
from engineworks.calibration.observe import expose
from engineworks.calibration.qdq import drop_unread, set_bias, set_weights

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

POWER = 0.75  # of the way to channels that are all equally loud; the rest would cost the readers' weights more
_MOST = 16.0  # no channel is raised by more
_SILENT = 1e-6  # of the loudest channel: quieter ones count as so much
_THROUGH = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool"})


@dataclass
class Tied:
    """Tensors whose channels must be scaled alike, and the names of the layers that write and read them."""

    tensors: list[str] = field(default_factory=list)
    writers: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Equalised:
    """A graph that computes the same, and each tensor's factors of its channels, ``(C,)``, against what it held."""

    model: "ModelProto"
    factors: Mapping[str, Array]


def equalise(model: "ModelProto", rows: Iterable[Mapping[str, Array]], *, power: float = POWER) -> Equalised:
    """Return a copy of the graph that computes the same, in tensors whose channels are more alike.

    Args:
        model: the float32 graph, batch norm folded.
        rows: inputs of one image each, on which the channels' largest magnitudes are seen.
        power: 0 leaves all as it is, 1 makes all channels of a tensor equally loud, as far as a factor of 16 does.

    No tensor becomes louder on these images than the loudest of those that are tied to it was.
    """
    graph, found = Graph(model), dict[str, Array]()
    groups = tied(graph)
    if groups and power:
        largest = _largest(model, [name for group in groups for name in group.tensors], rows)
        for group in groups:
            factors = _factors(_loudness(graph, group, largest), power)
            for name in group.writers:
                _scale_outputs(graph, name, factors)
            for name in group.readers:
                _scale_inputs(graph, name, 1 / factors)
            found |= dict.fromkeys(group.tensors, factors)
    drop_unread(graph.model)
    return Equalised(graph.model, found)


def tied(graph: Graph) -> list[Tied]:
    """Find the groups of tensors that can be scaled: whatever writes or reads one of them can follow."""
    found, seen = list[Tied](), set[str]()
    for node in graph.nodes:
        if _writer(graph, node) is None or node.output[0] in seen:
            continue
        group = Tied()
        whole = _gather(graph, node.output[0], group)
        seen.update(group.tensors)
        widths = {read_weights(graph, _layer(graph, name)).shape[:1] for name in group.writers}
        ranks = {read_weights(graph, _layer(graph, name)).ndim for name in group.writers}
        if whole and group.readers and len(widths) == len(ranks) == 1:
            found.append(group)
    return found


def _gather(graph: Graph, first: str, group: Tied) -> bool:
    """Collect what is tied to a tensor; tell whether all of it can follow."""
    waiting, whole = [first], True
    while waiting:
        name = waiting.pop()
        if name in group.tensors:
            continue
        group.tensors.append(name)
        node = graph.producer.get(name)
        if node is not None and _writer(graph, node) is not None:
            group.writers.add(node.name)
        elif node is not None and _lets_through(graph, node):
            waiting.extend(node.input[:1] if node.op_type == "Reshape" else node.input)
        else:
            whole = False
        whole &= name not in graph.outputs
        for reader, position in graph.readers.get(name, ()):
            if position == 0 and _reads(graph, reader):
                group.readers.add(reader.name)
            elif _lets_through(graph, reader):
                waiting.append(reader.output[0])
            else:
                whole = False
    return whole


def _writer(graph: Graph, node: "NodeProto") -> Layer | None:
    """Return a node's layer where its channels, on either side, can be scaled: a convolution."""
    layer = read_layer(graph, node) if node.op_type == "Conv" else None
    return layer if layer is not None and layer.takes_bias else None


def _reads(graph: Graph, node: "NodeProto") -> bool:
    """Tell whether a node is a layer whose weights can take a factor of its input's channels back."""
    layer = read_layer(graph, node) if node.op_type == "Gemm" else _writer(graph, node)
    return layer is not None


def _lets_through(graph: Graph, node: "NodeProto") -> bool:
    if node.op_type in {"Flatten", "Reshape"}:
        return _flattens(graph, node)
    if node.op_type == "Add":
        return not any(graph.is_constant(name) for name in node.input)
    return node.op_type in _THROUGH and len(node.output) == 1


def _flattens(graph: Graph, node: "NodeProto") -> bool:
    """Tell whether ``(N, C, …)`` becomes ``(N, C · …)``: what belongs to a channel stays together."""
    if node.op_type == "Flatten":
        return int(attribute(node, "axis", 1)) == 1
    sizes = graph.constant(node.input[1])
    return sizes is not None and sizes.size == 2 and int(sizes.ravel()[0]) == 0 and not attribute(node, "allowzero", 0)


def _largest(model: "ModelProto", names: Sequence[str], rows: Iterable[Mapping[str, Array]]) -> dict[str, Floats]:
    """Return each channel's largest magnitude: tensor → ``(C,)``."""
    run, found = expose(model, names), dict[str, Floats]()
    for row in rows:
        for name, values in zip(names, run(row), strict=True):
            most = np.abs(np.asarray(values, np.float32)).max(axis=(0, *range(2, values.ndim)))
            found[name] = np.maximum(found[name], most) if name in found else most
    return found


def _loudness(graph: Graph, group: Tied, largest: Mapping[str, Floats]) -> Floats:
    """Return the largest magnitude of each channel over a group, ``(C,)``; what was flattened has nothing to add."""
    channels = len(read_bias(graph, _layer(graph, next(iter(group.writers)))))
    rows = [largest[name] for name in group.tensors if len(largest[name]) == channels]
    return np.asarray(np.max(rows, axis=0), np.float32)


def _factors(largest: Floats, power: float) -> Array:
    loudest = float(largest.max())
    if not np.isfinite(loudest) or loudest <= 0:
        return np.ones(len(largest))
    seen = np.maximum(largest.astype(np.float64), loudest * _SILENT)
    return np.clip((loudest / seen) ** power, 1.0, _MOST)


def _layer(graph: Graph, name: str) -> Layer:
    layer = read_layer(graph, graph.by_name[name])
    assert layer is not None, name
    return layer


def _scale_outputs(graph: Graph, name: str, factors: Array) -> None:
    layer = _layer(graph, name)
    weights = read_weights(graph, layer)
    bias = (read_bias(graph, layer) * factors).astype(np.float32)
    set_weights(graph, layer, weights * factors.reshape(-1, *[1] * (weights.ndim - 1)))
    if layer.bias or bias.any():
        set_bias(graph, layer, bias)


def _scale_inputs(graph: Graph, name: str, factors: Array) -> None:
    """Scale what each input channel is multiplied with; a group's outputs read that group's inputs alone.

    A matrix behind a flattening reads as many numbers of each channel as its plane has.
    """
    layer = _layer(graph, name)
    weights = read_weights(graph, layer)
    if layer.kind == "Gemm":
        each = np.repeat(factors, weights.shape[1 - layer.axis] // len(factors))
        set_weights(graph, layer, weights * np.expand_dims(each, layer.axis))
        return
    outputs, inputs = weights.shape[:2]
    parts = weights.reshape(layer.groups, outputs // layer.groups, inputs, -1)
    set_weights(graph, layer, (parts * factors.reshape(layer.groups, 1, inputs, 1)).reshape(weights.shape))
