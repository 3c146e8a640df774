"""Take out of a graph what must not leave this machine, and keep the one thing that is worth keeping.

The converter writes a stack trace with absolute paths on every node. What stays is each node's module, by its
PyTorch name, under the key ``engineworks.module``.
"""

import ast
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

MODULE_KEY = "engineworks.module"
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: "ModelProto", name: str, *, known: Mapping[str, str] = MappingProxyType({})) -> None:
    """Strip paths, traces and tool noise from ``model`` in place, and name its graph.

    Args:
        model: any graph; graphs inside its nodes (If, Loop) are cleaned too.
        name: the graph's new name.
        known: value name → module, for nodes that have lost theirs.
    """
    for graph in _graphs(model.graph):
        _clean(graph, known)
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    model.graph.name = name


def _graphs(graph: "GraphProto") -> Iterator["GraphProto"]:
    yield graph
    for node in graph.node:
        for item in node.attribute:
            for inner in (*item.graphs, *([item.g] if item.HasField("g") else [])):
                yield from _graphs(inner)


def _clean(graph: "GraphProto", known: Mapping[str, str]) -> None:
    for node in graph.node:
        module = _module(node) or next((known[output] for output in node.output if output in known), "")
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        if module:
            node.metadata_props.add(key=MODULE_KEY, value=module)
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    kept = {tensor.name for tensor in graph.initializer}
    infos = [value for value in graph.value_info if value.name not in kept]  # initializers carry their own types
    graph.ClearField("value_info")
    graph.value_info.extend(infos)
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")


def modules(model: "ModelProto") -> dict[str, str]:
    """Map each value's name to the PyTorch module that computes it, as far as is known."""
    return {
        output: prop.value
        for node in model.graph.node
        for prop in node.metadata_props
        if prop.key == MODULE_KEY
        for output in node.output
    }


def _module(node: "NodeProto") -> str:
    """Return the innermost module's path, such as ``layer1.0.conv1``; the scopes end with the fx node's own name."""
    for prop in node.metadata_props:
        if prop.key in {_SCOPES, MODULE_KEY}:
            scopes = ast.literal_eval(prop.value) if prop.key == _SCOPES else [prop.value, ""]
            named = [scope for scope in scopes[:-1] if scope]
            return str(named[-1]) if named else ""
    return ""
