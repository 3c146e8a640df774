"""A float32 graph that answers as a half-precision one would: every tensor rounded to the type, every sum exact.

ONNX Runtime has no BF16 convolution on the CPU, so a BF16 bundle carries this graph beside the typed one, and its
figures stand for it on hosts without a GPU. On GoogLeNet it agrees with torch's own rounding to 0.001 dB.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engineworks.export.half import HalfType, onnx_type
from engineworks.export.precision import value_types

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def emulate(typed: "ModelProto", kind: HalfType) -> "ModelProto":
    """Return a float32 graph with the same inputs, outputs and stored weights, that rounds wherever ``typed`` would.

    Args:
        typed: what ``to_half`` returned.
        kind: the type that it was given.
    """
    from onnx import ModelProto

    model = ModelProto()
    model.CopyFrom(typed)
    graph, half = model.graph, onnx_type(kind)
    weights = [tensor.name for tensor in graph.initializer if tensor.data_type == half]
    wide = {name: f"{name}_wide" for name in weights}
    halves = {name for name, found in value_types(typed).items() if found == half}
    nodes = [_cast(name, wide[name], to=1) for name in weights]
    for node in typed.graph.node:
        nodes.extend(_rounded(node, wide, halves, half))
    graph.ClearField("node")
    graph.ClearField("value_info")
    graph.node.extend(nodes)
    return model


def _rounded(node: "NodeProto", wide: dict[str, str], halves: set[str], half: int) -> Iterator["NodeProto"]:
    """Yield the node in float32, and behind each half output a cast there and back."""
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(node.input):
        copy.input[index] = wide.get(name, name)
    rounded = [name for name in node.output if name in halves or _casts_to(node, half)]
    for index, name in enumerate(node.output):
        copy.output[index] = f"{name}_exact" if name in rounded else name
    _widen_attributes(copy, half)
    yield copy
    for name in rounded:
        yield _cast(f"{name}_exact", f"{name}_rounded", to=half)
        yield _cast(f"{name}_rounded", name, to=1)


def _casts_to(node: "NodeProto", half: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == half


def _widen_attributes(node: "NodeProto", half: int) -> None:
    """Turn constants and casts of the half type inside a node into float32."""
    from onnx import AttributeProto, TensorProto, numpy_helper

    for item in node.attribute:
        if node.op_type == "Cast" and item.name == "to" and item.i == half:
            item.i = TensorProto.FLOAT
        if item.type == AttributeProto.TENSOR and item.t.data_type == half:
            values = numpy_helper.to_array(item.t).astype("float32")
            item.t.CopyFrom(numpy_helper.from_array(values, item.t.name))


def _cast(source: str, target: str, *, to: int) -> "NodeProto":
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)
