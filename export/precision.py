"""Which precision a typed graph really computes in, layer by layer: counted, not assumed."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_NAMES = {1: "float32", 10: "float16", 16: "bfloat16", 3: "int8", 11: "float64"}
_WANTED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def realised(model: "ModelProto") -> dict[str, int]:
    """Count the weighted layers (Conv, ConvTranspose, Gemm, MatMul) by the type that they compute in.

    A layer both of whose operands come straight from a DequantizeLinear computes in int8.
    """
    counts: dict[str, int] = {}
    for _, kind in _layers(model):
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items()))


def check_realised(model: "ModelProto", asked: str, int8: Collection[str] = ()) -> None:
    """Hold every weighted layer against the precision asked for.

    Args:
        model: the typed graph.
        asked: ``fp32``, ``fp16`` or ``bf16``.
        int8: the names of the layers that compute in int8 instead.

    Raises:
        ExportError: naming the first layers that compute in another type.
    """
    wanted = dict.fromkeys(int8, "int8")
    wrong = [(name, kind) for name, kind in _layers(model) if kind != wanted.get(name, _WANTED[asked])]
    if wrong:
        shown = ", ".join(f"{name} ({kind})" for name, kind in wrong[:5])
        raise ExportError(f"asked for {asked}, but {len(wrong)} layers compute in another type: {shown}.")


def value_types(model: "ModelProto") -> dict[str, int]:
    """Infer ONNX's number of the type of every value, whatever the graph itself says of it."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(_without_weights(model)).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}


def check_compiled(layer_types: Mapping[str, int], asked: str, int8: int = 0) -> None:
    """Hold the layers of the network that the compiler made of the graph against the precision asked for.

    Args:
        layer_types: ``Engine.layer_types``, such as ``{"convolution fp16": 57}``.
        asked: ``fp32``, ``fp16`` or ``bf16``.
        int8: how many layers compute in int8 instead.

    Raises:
        ExportError: naming the kinds of layers that the compiler reads in another type.
    """
    allowed = (f" {asked}", " int8") if int8 else (f" {asked}",)
    wrong = [f"{number} {kind}" for kind, number in layer_types.items() if not kind.endswith(allowed)]
    found = sum(number for kind, number in layer_types.items() if kind.endswith(" int8"))
    if found != int8:
        wrong.append(f"{found} layers in int8 and not {int8}")
    if wrong:
        raise ExportError(f"asked for {asked}, but the compiler reads {', '.join(wrong)} in the graph.")


def _layers(model: "ModelProto") -> list[tuple[str, str]]:
    types = value_types(model)
    integers = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        (
            node.name,
            "int8" if integers.issuperset(node.input[:2]) else _NAMES.get(types.get(node.output[0], 0), "unknown"),
        )
        for node in model.graph.node
        if node.op_type in _WEIGHTED
    ]


def _without_weights(model: "ModelProto") -> "ModelProto":
    """Copy a model with its weights turned into inputs of the same type: inference needs no more."""
    from onnx import ModelProto, helper

    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    bare.graph.output.extend(model.graph.output)
    return bare
