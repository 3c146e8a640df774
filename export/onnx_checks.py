"""What of an ONNX file is refused before anything of it runs: operators, types and names that cannot be proven here."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

ONNX_DOMAINS = {"", "ai.onnx"}
_HALVES = {10, 16}
_QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
}  # fmt: skip
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def check_shapes(recipe: Recipe, names: list[str]) -> None:
    """Hold the names of ``--shape`` against the inputs'.

    Raises:
        ExportError: a name that is no input's, one that is given twice, or none where there are several.
    """
    given, known = [shape.name for shape in recipe.shapes], ", ".join(names)
    unknown = [name for name in given if name not in {"", *names}]
    if unknown:
        raise ExportError(f"--shape: {recipe.spec.shown} takes the inputs {known}; got {', '.join(unknown)}.")
    if len(set(given)) < len(given) or ("" in given and max(len(given), len(names)) > 1):
        raise ExportError(f"--shape: name each input of {recipe.spec.shown} once, as NAME:SIZES; it takes {known}.")


def check_outputs(model: "ModelProto", shown: str) -> None:
    """Refuse outputs that nothing computes, and those that are listed twice.

    Raises:
        ExportError: naming the output.
    """
    computed, names = {name for node in model.graph.node for name in node.output}, set[str]()
    for name in (value.name for value in model.graph.output):
        if name in names:
            raise ExportError(f"{shown}: lists its output {name} twice.")
        if name not in computed:
            raise ExportError(f"{shown}: output {name} is an input or a constant, passed through. Leave it out.")
        names.add(name)


def check_operators(model: "ModelProto", shown: str) -> None:
    """Refuse operators that are not ONNX's own, draw random numbers or quantise, and weights in half precision.

    Args:
        model: of which every node is looked at, those of inner graphs too.
        shown: what the messages call it.

    Raises:
        ExportError: naming the first such node or tensor.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes_of(model.graph):
        if node.domain not in ONNX_DOMAINS:
            raise ExportError(
                f"{shown}: {node.op_type} at {node.name or node.output[0]} is no operator of ONNX ({node.domain}); "
                "TensorRT does not take it. Export the network without runtime-specific optimisation."
            )
        if node.op_type in _QUANTISED:
            raise ExportError(f"{shown}: is quantised already ({node.op_type}). Give the float32 network.")
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and not _sleeps(node, stored)):
            raise ExportError(
                f"{shown}: {node.op_type} at {node.name or node.output[0]} draws random numbers; such a graph cannot "
                "be compared. Export the network in eval mode."
            )
    half = next(
        (tensor.name or "a constant" for tensor in tensors_of(model.graph) if tensor.data_type in _HALVES), None
    )
    if half is not None:
        raise ExportError(f"{shown}: {half} is stored in half precision. Give the float32 network; --fp16 casts it.")


def _sleeps(dropout: "NodeProto", stored: "Mapping[str, TensorProto]") -> bool:
    """Tell whether a Dropout lets everything through: its third input, training mode, is absent or stored as false."""
    from onnx import numpy_helper

    if len(dropout.input) < 3 or not dropout.input[2]:
        return True
    return dropout.input[2] in stored and not numpy_helper.to_array(stored[dropout.input[2]]).any()


def nodes_of(graph: "GraphProto") -> "Iterator[NodeProto]":
    """Yield every node, those of inner graphs too."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from nodes_of(inner)


def inner_graphs(node: "NodeProto") -> "Iterator[GraphProto]":
    """Yield the graphs that a node holds: the branches of an If, the body of a Loop."""
    for item in node.attribute:
        yield from item.graphs
        if item.HasField("g"):
            yield item.g


def tensors_of(graph: "GraphProto") -> "Iterator[TensorProto]":
    """Yield every stored tensor, those inside nodes and inner graphs too."""
    yield from graph.initializer
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                yield item.t
            yield from item.tensors
        for inner in inner_graphs(node):
            yield from tensors_of(inner)
