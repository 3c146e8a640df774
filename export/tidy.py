"""Last steps on a graph of our own: padding goes into the operator that reads it, what nobody reads goes out.

Rules write one operator at a time and see no further; here two that belong together become one.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_SMALL = 256  # bytes of a constant that may be one of many alike
_PADDED_WITH = {"Conv": 0.0, "MaxPool": -np.inf}  # what each takes beyond the edge for


class Written(Protocol):
    """What is tidied: the nodes in order, and the constants by name."""

    nodes: "list[NodeProto]"
    weights: "dict[str, TensorProto]"


def tidy(graph: Written, outputs: Iterable[str]) -> None:
    """Merge twins, transpositions and paddings, then drop what no output depends on; all in place."""
    kept = set(outputs)
    _merge_twins(graph, kept)
    _merge_transpositions(graph)
    _merge_pads(graph, kept)
    _drop_unread(graph, kept)


def _merge_twins(graph: Written, outputs: set[str]) -> None:
    """Let one node do what several do to the same values, as where a forward computes a thing twice."""
    same, seen = _equal_constants(graph), dict[tuple[Any, ...], list[str]]()
    for node in graph.nodes:
        inputs = [same.get(name, name) for name in node.input]
        attributes = tuple(sorted(item.SerializeToString(deterministic=True) for item in node.attribute))
        first = seen.setdefault((node.op_type, *inputs, attributes), list(node.output))
        if first != list(node.output) and not outputs.intersection(node.output):
            same.update(zip(node.output, first, strict=True))
        node.input[:] = [same[name] if name in same and name not in graph.weights else name for name in node.input]


def _equal_constants(graph: Written) -> dict[str, str]:
    """Map small constants to the first that is equal: shapes, axes, numbers."""
    first: dict[tuple[Any, ...], str] = {}
    return {
        name: first.setdefault((tensor.data_type, *tensor.dims, tensor.raw_data), name)
        for name, tensor in graph.weights.items()
        if len(tensor.raw_data) <= _SMALL
    }


def _merge_transpositions(graph: Written) -> None:
    """Let a transposition of a transposition read the first one's input; two that cancel out are none."""
    made = {output: node for node in graph.nodes for output in node.output}
    same: dict[str, str] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        source = made.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.op_type != "Transpose":
            continue
        order = [_values(source, "perm")[axis] for axis in _values(node, "perm")]
        node.input[0] = source.input[0]
        node.attribute[0].ints[:] = order
        if order == sorted(order):
            same[node.output[0]] = source.input[0]


def _merge_pads(graph: Written, outputs: set[str]) -> None:
    """Move a padding that one convolution or max pooling alone reads into its attributes."""
    readers = Counter(name for node in graph.nodes for name in node.input)
    made = {node.output[0]: node for node in graph.nodes if node.op_type == "Pad"}
    for node in graph.nodes:
        pad = made.get(node.input[0]) if node.op_type in _PADDED_WITH else None
        if pad is None or readers[pad.output[0]] != 1 or pad.output[0] in outputs or not _fits(graph, pad, node):
            continue
        amounts = _constant(graph, pad.input[1]).tolist()
        rank = len(amounts) // 2
        added = [*amounts[2:rank], *amounts[rank + 2 :]]
        total = [before + more for before, more in zip(_values(node, "pads"), added, strict=True)]
        if node.op_type == "MaxPool" and any(
            amount >= size for amount, size in zip(total, _values(node, "kernel_shape") * 2, strict=True)
        ):
            continue  # ONNX Runtime refuses a window that may lie wholly beyond the edge
        next(item for item in node.attribute if item.name == "pads").ints[:] = total
        node.input[0] = pad.input[0]


def _fits(graph: Written, pad: "NodeProto", reader: "NodeProto") -> bool:
    """Tell whether a padding adds to the spatial axes alone what its reader would."""
    amounts, mode = _constant(graph, pad.input[1]), next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    if mode != b"constant" or amounts.reshape(2, -1)[:, :2].any():
        return False
    return bool(_constant(graph, pad.input[2]) == _PADDED_WITH[reader.op_type])


def _drop_unread(graph: Written, outputs: set[str]) -> None:
    read, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    graph.nodes[:] = reversed(kept)
    for name in graph.weights.keys() - read:
        del graph.weights[name]


def _values(node: "NodeProto", name: str) -> list[int]:
    return next(list(item.ints) for item in node.attribute if item.name == name)


def _constant(graph: Written, name: str) -> "np.ndarray[Any, Any]":
    from onnx import numpy_helper

    array: np.ndarray[Any, Any] = numpy_helper.to_array(graph.weights[name])
    return array
