"""Cast a float32 graph to FP16 or BF16: the typed graph that a strongly typed engine is built from.

The inputs and outputs stay float32; one Cast stands behind each input and before each output. Weights are rounded
once, from float32. TensorRT has no precision flags any more: what the graph says is what the engine does.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from engineworks.export.apart import Weights, is_reference
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

HalfType = Literal["fp16", "bf16"]
_LARGEST = {"fp16": 65504.0, "bf16": 3.3895314e38}
# Inputs that ONNX holds to float32 or that are no numbers of the network: operator → positions.
_KEPT_INPUTS = {"Resize": (1, 2)}
_QDQ = {"QuantizeLinear", "DequantizeLinear"}
_HALF_SCALES = 19  # the operator set since which Q and DQ take scales of a half type
_REFUSED = {"If", "Loop", "Scan"}


def to_half(model: "ModelProto", kind: HalfType) -> "ModelProto":
    """Return a copy of ``model`` whose tensors are FP16 or BF16, with float32 inputs and outputs.

    What is int8 in a Q/DQ graph stays so; the scales become of the half type, which such a graph's writer has rounded
    them to.

    Raises:
        ExportError: a weight beyond the type's range, by name; or an operator with a graph inside, which TensorRT's
            strongly typed networks are not built from here.
    """
    from onnx import ModelProto

    half = ModelProto()
    half.CopyFrom(model)
    _refuse(half)
    kept = set(_kept_names(half))
    _cast_initializers(half, kind, kept)
    for node in half.graph.node:
        if not kept.intersection(node.output):
            _cast_attributes(node, kind)
    _cast_boundaries(half, kind)
    _retype_values(half, kind, kept)
    return half


def _refuse(model: "ModelProto") -> None:
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    for node in model.graph.node:
        if node.op_type in _QDQ and opset < _HALF_SCALES:
            raise ExportError(
                f"cannot cast the graph: {node.name} takes scales of a half type from opset {_HALF_SCALES} on, this "
                f"graph has {opset}. Export it with a later --opset."
            )
        if node.op_type in _REFUSED:
            raise ExportError(f"cannot cast the graph: {node.op_type} at {node.name}. Export this network with --fp32.")


def _kept_names(model: "ModelProto") -> Iterator[str]:
    for node in model.graph.node:
        for position in _KEPT_INPUTS.get(node.op_type, ()):
            if position < len(node.input):
                yield node.input[position]


def _cast_initializers(model: "ModelProto", kind: HalfType, kept: set[str]) -> None:
    from onnx import TensorProto

    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in kept:
            continue
        if is_reference(tensor):
            tensor.data_type = onnx_type(kind)
        else:
            tensor.CopyFrom(_rounded(tensor, kind))


def half_weights(model: "ModelProto", weights: Weights, kind: HalfType) -> Weights:
    """Round the weights that lie beside a graph, as ``to_half`` rounds those inside.

    Args:
        model: what ``to_half`` returned.
        weights: those of the float32 graph.
        kind: the type that it was given.

    Raises:
        ExportError: a weight beyond the type's range, by name.
    """
    halves = {t.name for t in model.graph.initializer if is_reference(t) and t.data_type == onnx_type(kind)}
    return {name: _round(name, array, kind) if name in halves else array for name, array in weights.items()}


def _rounded(tensor: "TensorProto", kind: HalfType) -> "TensorProto":
    from onnx import TensorProto, numpy_helper

    rounded = TensorProto(name=tensor.name, dims=tensor.dims, data_type=onnx_type(kind))
    rounded.raw_data = _round(tensor.name, numpy_helper.to_array(tensor), kind).tobytes()
    return rounded


def _round(
    name: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", kind: HalfType
) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    largest = float(np.maximum(values.max(), -values.min())) if values.size else 0.0
    if not largest <= _LARGEST[kind]:
        raise ExportError(
            f"weight {name}: its largest magnitude {largest:.3g} is beyond {kind} ({_LARGEST[kind]:.0f}). "
            "Export with --bf16 or --fp32."
        )
    if kind == "fp16":
        return values.astype(np.float16)
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


def onnx_type(kind: HalfType) -> int:
    """Return ONNX's number for the type."""
    from onnx import TensorProto

    return int(TensorProto.FLOAT16 if kind == "fp16" else TensorProto.BFLOAT16)


def _cast_attributes(node: "NodeProto", kind: HalfType) -> None:
    """Turn float32 constants, and casts to float32 (``to``, EyeLike's ``dtype``), into the half type."""
    from onnx import AttributeProto, TensorProto, helper

    if node.op_type == "Constant" and node.attribute[0].name in {"value_float", "value_floats"}:
        item = node.attribute[0]
        values = np.array(item.f if item.name == "value_float" else list(item.floats), np.float32)
        node.ClearField("attribute")
        node.attribute.append(helper.make_attribute("value", _tensor(values)))
    for item in node.attribute:
        if item.type == AttributeProto.TENSOR and item.t.data_type == TensorProto.FLOAT:
            item.t.CopyFrom(_rounded(item.t, kind))
        if item.name in {"to", "dtype"} and item.type == AttributeProto.INT and item.i == TensorProto.FLOAT:
            item.i = onnx_type(kind)


def _tensor(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> "TensorProto":
    from onnx import numpy_helper

    return numpy_helper.from_array(values)


def _cast_boundaries(model: "ModelProto", kind: HalfType) -> None:
    """Rename the float32 inputs and outputs inside, and put a Cast between."""
    from onnx import TensorProto, helper

    graph = model.graph
    inside = {
        v.name: f"{v.name}_{kind}" for v in (*graph.input, *graph.output) if _is_float(v.type.tensor_type.elem_type)
    }
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = inside.get(name, name)
    for tensor in graph.initializer:
        tensor.name = inside.get(tensor.name, tensor.name)
    heads = [v.name for v in graph.input if v.name in inside]
    tails = [v.name for v in graph.output if v.name in inside and v.name not in heads]
    first = [helper.make_node("Cast", [n], [inside[n]], name=f"cast_{n}", to=onnx_type(kind)) for n in heads]
    last = [helper.make_node("Cast", [inside[n]], [n], name=f"cast_{n}", to=TensorProto.FLOAT) for n in tails]
    nodes = [*first, *graph.node, *last]
    graph.ClearField("node")
    graph.node.extend(nodes)


def _is_float(kind: int) -> bool:
    from onnx import TensorProto

    return kind == TensorProto.FLOAT


def _retype_values(model: "ModelProto", kind: HalfType, kept: set[str]) -> None:
    for value in model.graph.value_info:
        if _is_float(value.type.tensor_type.elem_type) and value.name not in kept:
            value.type.tensor_type.elem_type = onnx_type(kind)
