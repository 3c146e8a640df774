"""Count the multiply-adds of an ONNX graph: what its convolutions and matrix products cost.

One multiply-add is one product added to a sum, the unit of the ResNet paper's table 1 (others count it as two
operations). Biases, normalisation, activations, poolings and element-wise arithmetic are not counted. Zeros that a
kernel happens to hold are.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

Shape = tuple[int, ...]
_SMALL = 64  # numbers; a tensor of no more may tell a shape, as Reshape's and Resize's do


def multiply_adds(model: "ModelProto", rows: int = 1) -> int:
    """Count the multiply-adds of one run.

    Args:
        model: a graph of any float precision whose only free axis, if any, is the batch; Q/DQ graphs among them.
        rows: what the batch counts where it is free; a fixed one stays as it is.

    Raises:
        ExportError: a size that shape inference does not tell, or a control-flow operator, whose body runs as often as
            the data say.

    Counted: Conv, ConvTranspose, Gemm, MatMul.
    """
    shapes = _shapes(model, rows)
    total = 0
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ExportError(f"cannot count the multiply-adds of {node.name}: {node.op_type} runs as the data say.")
        rule = _RULES.get(node.op_type)
        if rule is not None and node.domain in {"", "ai.onnx"}:
            total += rule(node, *_known(node, shapes))
    return total


def _known(node: "NodeProto", shapes: Mapping[str, Shape]) -> tuple[Shape, Shape, Shape]:
    """Return the shapes of a node's two operands and of its result."""
    names = (node.input[0], node.input[1], node.output[0])
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ExportError(f"cannot count the multiply-adds of {node.name}: the size of {unknown[0]} is not known.")
    left, right, result = (shapes[name] for name in names)
    return left, right, result


def _conv(_node: "NodeProto", _left: Shape, kernel: Shape, result: Shape) -> int:
    """Count for each value of the result one kernel: input channels of its group × window."""
    return math.prod(result) * math.prod(kernel[1:])


def _conv_transpose(_node: "NodeProto", left: Shape, kernel: Shape, _result: Shape) -> int:
    """Count for each value of the input one kernel, borders that are cropped afterwards among it."""
    return math.prod(left) * math.prod(kernel[1:])


def _gemm(node: "NodeProto", left: Shape, _right: Shape, result: Shape) -> int:
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(result) * left[0 if turned else 1]


def _matmul(_node: "NodeProto", left: Shape, _right: Shape, result: Shape) -> int:
    return math.prod(result) * left[-1]


_RULES: Mapping[str, Callable[["NodeProto", Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _shapes(model: "ModelProto", rows: int) -> dict[str, Shape]:
    """Infer the shape of every value that has a fixed one."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(_skeleton(model, rows)).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            found[value.name] = tuple(axis.dim_value for axis in axes)
    return found


def _skeleton(model: "ModelProto", rows: int) -> "ModelProto":
    """Copy the graph without its weights, which shape inference would copy twice, and with a fixed batch.

    A weight becomes an input of its shape; what may tell a shape stays.
    """
    from onnx import GraphProto, ModelProto, helper

    graph = model.graph
    weights = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _SMALL]
    names = {tensor.name for tensor in weights}
    bare = GraphProto(
        name=graph.name,
        node=graph.node,
        input=[_with_rows(value, rows) for value in graph.input if value.name not in names],
        initializer=[tensor for tensor in graph.initializer if tensor.name not in names],
        output=[helper.make_empty_tensor_value_info(value.name) for value in graph.output],
    )
    bare.input.extend(_as_input(tensor) for tensor in weights)
    return ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=bare, functions=model.functions
    )


def _as_input(tensor: "TensorProto") -> "ValueInfoProto":
    from onnx import helper

    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _with_rows(value: "ValueInfoProto", rows: int) -> "ValueInfoProto":
    from onnx import ValueInfoProto

    fixed = ValueInfoProto()
    fixed.CopyFrom(value)
    axes = fixed.type.tensor_type.shape.dim
    if axes and not axes[0].HasField("dim_value"):
        axes[0].dim_value = rows
    return fixed
