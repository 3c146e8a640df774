"""The layers of an engine of TensorRT itself, read from its inspector's JSON into the kernels that ``plan`` gives.

Written from NVIDIA's documents and published outputs (Developer Guide, "Engine Inspector"; "Migrating IEngineInspector
Usage from TensorRT 10.x to 11.x"; the samples of TREx; TensorRT issues 3583, 4020 and 4397), not from an engine that
was seen. Guarded by its keys: a layer or tensor written in another way is "not readable", and a product whose operands
are not told is no product, so that its layer is "not seen". Nothing is guessed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engineworks.runtime.errors import PlanError
from engineworks.runtime.plan import FUNCTION, Kernel, Plan, Product
from engineworks.runtime.plan_text import PlanTensor

_TYPES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
_TYPES |= {"bfloat16": "bfloat16", "fp8": "float8", "int64": "int64", "int32": "int32", "int8": "int8"}
_TYPES |= {"uint8": "uint8", "bool": "bool"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}
_BYTES |= {"bool": 1}
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType")  # TensorRT 10 has one key for both, 11 two
_NO_KERNEL = {"NoOp", "shape_call", "signal", "wait"}
_CONVOLUTIONS = {"Convolution": "convolution", "Deconvolution": "deconvolution"}
_LAYER = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*?)\](?=[\x1e\x1f]|\[ONNX Layer: |$)")
_TACTIC = re.compile(r"_(bf16|f16|f32|i8)(?:bf16|f16|f32|i32|i8)_(bf16|tf32|f16|f32|i8)(?:f16|f32|i32)_")
_MULTIPLIED = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "tf32": "float32", "i8": "int8"}


def read_information(text: str, *, version: str, targets: Sequence[str], batch: int) -> Plan:
    """Read what ``EngineInspector.get_engine_information`` gave as JSON, of an engine built with DETAILED verbosity.

    Args:
        text: the JSON.
        version: TensorRT's full version; ``targets``: what the engine was built for.
        batch: how many rows its context was set to; without them no size or format is told.

    Raises:
        PlanError: the JSON is not written in a way that is known; the message says what is not.

    A kernel's bytes are those of the tensors and weights that are told, without the padding of their formats; constants
    inside fused kernels are not told.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise PlanError("not readable: TensorRT's inspector gave no JSON") from error
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not layers:
        raise PlanError("not readable: TensorRT's inspector gave no list of layers")
    if any(isinstance(layer, str) for layer in layers):
        raise PlanError("not readable: the engine tells its layers' names alone. Build it with DETAILED verbosity")
    kernels = tuple(kernel for layer in layers for kernel in _kernels(layer))
    return Plan(version, tuple(targets), batch, kernels, "TensorRT")


def _kernels(layer: Any) -> Iterator[Kernel]:
    """Yield a layer's kernel, if it has one: what keeps order among streams, or moves nothing, has none."""
    name, kind = (_value(layer, key, str) for key in ("Name", "LayerType"))
    given, made = (_tensors(name, _value(layer, key, list)) for key in ("Inputs", "Outputs"))
    if kind in _NO_KERNEL or not (layer["Inputs"] or layer["Outputs"]):
        return
    if not made:
        raise PlanError(f"not readable: layer {name!r} of type {kind} has no output")
    product, constants = _product(layer, kind, given, made)
    called = " ".join(word for word in (kind, layer.get("Origin"), layer.get("TacticName")) if isinstance(word, str))
    metadata = layer.get("Metadata", "")
    found = _LAYER.findall(metadata) if isinstance(metadata, str) else []
    products = () if product is None else (product,)
    yield Kernel(FUNCTION, called, (*given, *constants), made, tuple(dict.fromkeys(found)), products)


def _value(layer: Any, key: str, kind: type) -> Any:
    value = layer.get(key) if isinstance(layer, dict) else None
    if not isinstance(value, kind):
        raise PlanError(f"not readable: a layer whose {key} is not told in a known way: {str(layer)[:120]}")
    return value


def _tensors(owner: str, tensors: Sequence[Any]) -> tuple[PlanTensor, ...]:
    return tuple(_tensor(owner, tensor) for tensor in tensors if _on_device(owner, tensor))


def _on_device(owner: str, tensor: Any) -> bool:
    place = tensor.get("Location", "Device") if isinstance(tensor, dict) else None
    if str(place) not in {"Device", "Host"}:
        raise PlanError(f"not readable: a tensor of layer {owner!r} lies in an unknown place: {str(tensor)[:120]}")
    return bool(place == "Device")


def _tensor(owner: str, tensor: Mapping[str, Any]) -> PlanTensor:
    name, dims = tensor.get("Name"), tensor.get("Dimensions")
    if not isinstance(name, str) or not isinstance(dims, list) or not all(type(size) is int for size in dims):
        raise PlanError(f"not readable: a tensor of layer {owner!r} is written in an unknown way: {str(tensor)[:120]}")
    if min(dims, default=1) < 1:
        raise PlanError(f"not readable: a size of tensor {name!r} is not told: {dims}")
    told = [tensor[key] for key in _TYPE_KEYS if key in tensor]
    return _sized(name, _type(name, told[0] if len(told) == 1 else None), tuple(dims))


def _sized(name: str, dtype: str, dims: tuple[int, ...]) -> PlanTensor:
    return PlanTensor(name, dtype, dims, (), math.prod(dims) * _BYTES[dtype])


def _type(owner: str, words: Any) -> str:
    """Find the one type that TensorRT's description names: "Channel major FP16 format where channel % 8 == 0"."""
    parts = re.findall(r"[a-z0-9]+", words.lower()) if isinstance(words, str) else []
    found = {_TYPES[part] for part in parts if part in _TYPES}
    if len(found) != 1:
        raise PlanError(f"not readable: the type of {owner!r} is not told in a known way: {words!r}")
    return found.pop()


def _product(
    layer: Mapping[str, Any], kind: str, given: Sequence[PlanTensor], made: Sequence[PlanTensor]
) -> tuple[Product | None, list[PlanTensor]]:
    """Return what a layer multiplies, and the weights that it reads; None where its operands are not told."""
    constants = [tensor for key in ("Weights", "Bias") for tensor in _constant(layer, key)]
    parameters = str(layer.get("ParameterType", ""))
    if parameters in _CONVOLUTIONS:
        return _convolution(layer, _CONVOLUTIONS[parameters], given, made[0]), constants
    if constants or not given or len(made) > 1 or ("MatrixMultiply" not in {kind, parameters} and kind != "gemm"):
        return None, constants
    if len(given) == 1:
        weights = _hidden_weights(layer, given[0], made[0])
        return (None, []) if weights is None else (_matrix_product(given[0], weights, made[0]), [weights])
    shown = _shown_operand(given, made[0])
    return (None, []) if shown is None else (_matrix_product(given[0], shown, made[0]), [])


def _constant(layer: Mapping[str, Any], key: str) -> Iterator[PlanTensor]:
    told = layer.get(key)
    if isinstance(told, dict) and type(told.get("Count")) is int and told["Count"] > 0:
        name = f"{layer['Name']}, {key}"
        yield _sized(name, _type(name, told.get("Type")), (told["Count"],))


def _convolution(layer: Mapping[str, Any], kind: str, given: Sequence[PlanTensor], made: PlanTensor) -> Product | None:
    weights = next(_constant(layer, "Weights"), None)
    elsewhere = layer.get("HasDynamicFilter", 0) != 0 or str(layer.get("ConvXAsActInputIdx", -1)) not in {"-1", "0"}
    if weights is None or elsewhere or not given or min(len(given[0].dims), len(made.dims)) < 3:
        return None
    whole = given[0].dims if kind == "deconvolution" else _convolved(layer, given[0].dims, made.dims)
    if whole is None or not whole[1]:
        return None
    positions = math.prod(whole) // whole[1]
    return Product(kind, (given[0].dtype, weights.dtype), positions, positions * weights.dims[0])


def _convolved(layer: Mapping[str, Any], given: tuple[int, ...], made: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the sizes that a convolution makes: the layer's own, or those before the pooling that is fused to it."""
    if "Pool" not in layer["LayerType"]:
        return made
    keys = ("Kernel", "Stride", "Dilation", "PrePadding", "PostPadding")
    told = [layer.get(key) for key in keys]
    if layer.get("PaddingMode") != "kEXPLICIT_ROUND_DOWN" or not all(_are_sizes(sizes, given[2:]) for sizes in told):
        return None
    axes = zip(given[2:], *(sizes for sizes in told if sizes is not None), strict=True)
    spatial = (
        (size + pre + post - wide * (kernel - 1) - 1) // step + 1 for size, kernel, step, wide, pre, post in axes
    )
    return (*made[:2], *spatial)


def _are_sizes(sizes: Any, axes: tuple[int, ...]) -> bool:
    return isinstance(sizes, list) and len(sizes) == len(axes) and all(type(size) is int for size in sizes)


def _hidden_weights(layer: Mapping[str, Any], given: PlanTensor, made: PlanTensor) -> PlanTensor | None:
    """Find out about weights that only the kernel's name tells of: ``gemm_f16f16_f16f16_f16`` multiplies half.

    Its first type has to be that of the input, which the inspector tells, or the name says nothing. Rows × weights is
    known for matrices, and for batches of them whose last size changes; else the axes could be turned.
    """
    tactic = layer.get("TacticName")
    found = _TACTIC.search(tactic) if isinstance(tactic, str) else None
    if found is None or _MULTIPLIED[found[1]] != given.dtype:
        return None
    rows = _without_ones(made.dims)
    last = len(rows) - 1
    told = len(rows) == 2 or (len(rows) == len(given.dims) == 3 and given.dims[-1] != made.dims[-1])
    if not told or given.dims[:last] != rows[:last]:
        return None
    sizes = (math.prod(given.dims[last:]), rows[-1])
    return _sized(f"{layer['Name']}, weights", _MULTIPLIED[found[2]], sizes)


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    while len(dims) > 2 and dims[-1] == 1:
        dims = dims[:-1]
    return dims


def _shown_operand(given: Sequence[PlanTensor], made: PlanTensor) -> PlanTensor | None:
    """Return the second operand where both are inputs; None where it could as well be what is added to the product."""
    left, right = given[:2]
    if min(len(left.dims), len(right.dims), len(made.dims)) < 2 or right.dims == made.dims:
        return None
    fits = left.dims[:-1] == made.dims[:-1] and right.dims[-2:] == (left.dims[-1], made.dims[-1])
    return right if fits else None


def _matrix_product(left: PlanTensor, right: PlanTensor, made: PlanTensor) -> Product:
    work = math.prod(made.dims) * right.dims[-2]
    return Product("matrix product", (left.dtype, right.dtype), math.prod(made.dims) // right.dims[-1], work)
