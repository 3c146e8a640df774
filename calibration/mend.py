"""Mend in a Q/DQ graph what can be mended without changing its answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import Array, Graph, attribute
from engineworks.calibration.lint import PAIR, Finding, lint
from engineworks.calibration.qdq import drop_unread

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class Mended:
    """A mended copy of a graph, what was mended, and what is left for its author."""

    model: "ModelProto"
    done: tuple[Finding, ...]
    left: tuple[Finding, ...]


def fix(model: "ModelProto") -> Mended:
    """Mend every finding of ``lint`` whose mend is mechanical; ONNX Runtime computes the same with the result.

    Int32 biases and quantised constants that are no weights become float; float weights with a Q become int8; uint8
    with zero point 128 becomes int8 with zero point 0; scales that are vectors of one become scalars.
    """
    found = lint(model)
    graph = Graph(model)
    for finding in found:
        if finding.mechanical:
            _MENDS[finding.rule](graph, graph.by_name[finding.node])
    _drop_bypassed(graph)
    drop_unread(graph.model)
    left = lint(graph.model)
    gone = {(one.node, one.rule) for one in left}
    return Mended(graph.model, tuple(one for one in found if (one.node, one.rule) not in gone), tuple(left))


def _float_constant(graph: Graph, node: "NodeProto") -> None:
    """Let a DQ's readers read the float numbers that it computes from constants."""
    values = _dequantise(graph, node)
    name = graph.store(f"{node.input[0]}_float", values)
    for reader, position in graph.readers.get(node.output[0], ()):
        reader.input[position] = name


def _int8_weight(graph: Graph, node: "NodeProto") -> None:
    """Store what a Q makes of a constant, and let the DQ read that."""
    quantiser = graph.producer[node.input[0]]
    node.input[0] = graph.store(f"{quantiser.input[0]}_int8", _quantise(graph, quantiser))


def _signed(graph: Graph, node: "NodeProto") -> None:
    """Take 128 off a uint8 Q or DQ: the same steps, counted from 0."""
    zero = graph.constant(node.input[2])
    assert zero is not None
    node.input[2] = graph.store(f"{node.input[2]}_int8", np.zeros(zero.shape, np.int8))
    stored = graph.constant(node.input[0])
    if node.op_type == PAIR[1] and stored is not None:
        node.input[0] = graph.store(f"{node.input[0]}_int8", (stored.astype(np.int16) - 128).astype(np.int8))


def _scalar(graph: Graph, node: "NodeProto") -> None:
    """Turn the vectors of one that a Q or DQ reads into scalars."""
    for position in range(1, len(node.input)):
        values = graph.constant(node.input[position]) if node.input[position] else None
        if values is not None and values.shape == (1,):
            node.input[position] = graph.store(f"{node.input[position]}_scalar", values.reshape(()))


_MENDS: dict[str, Callable[[Graph, "NodeProto"], None]] = {
    "int32 bias": _float_constant,
    "constant": _float_constant,
    "float weight": _int8_weight,
    "integer type": _signed,
    "scale shape": _scalar,
}


def _along(values: Array, node: "NodeProto", rank: int) -> Array:
    """Lay a scale or zero point out so that it broadcasts over a tensor of ``rank`` axes."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[int(attribute(node, "axis", 1)) % rank] = -1
    return values.reshape(shape)


def _operand(graph: Graph, node: "NodeProto", position: int, rank: int) -> Array:
    values = graph.constant(node.input[position]) if len(node.input) > position and node.input[position] else None
    return _along(np.zeros((), np.int8) if values is None else values, node, rank)


def _quantise(graph: Graph, node: "NodeProto") -> Array:
    """Compute what ONNX says of QuantizeLinear: rounded to even, saturated to the zero point's type."""
    values = graph.constant(node.input[0])
    assert values is not None
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    assert zero is not None
    limits = np.iinfo(zero.dtype)
    steps = np.rint(values / _operand(graph, node, 1, values.ndim)) + _operand(graph, node, 2, values.ndim)
    return np.asarray(np.clip(steps, limits.min, limits.max), zero.dtype)


def _dequantise(graph: Graph, node: "NodeProto") -> Array:
    steps = graph.constant(node.input[0])
    if steps is None:
        steps = _quantise(graph, graph.producer[node.input[0]])
    scale = _operand(graph, node, 1, steps.ndim)
    zero = _operand(graph, node, 2, steps.ndim)
    return np.asarray((steps.astype(np.int64) - zero).astype(scale.dtype) * scale, scale.dtype)


def _drop_bypassed(graph: Graph) -> None:
    """Take out the Q and DQ whose results nobody reads any more."""
    nodes = graph.model.graph.node
    kept = set(graph.outputs)
    for node in nodes:
        kept.update(node.input)
    unread = [node for node in nodes if node.op_type in PAIR and not kept.intersection(node.output)]
    for node in unread:
        nodes.remove(node)
    if unread:
        _drop_bypassed(graph)
