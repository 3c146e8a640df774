"""What the server and a model say of themselves: metadata, model configuration, and which extensions there are."""

import importlib.metadata
from typing import Any

from engineworks.runtime.checks import Contract
from engineworks.runtime.manifest import Manifest, Tensor
from engineworks.runtime.oip_dtypes import protocol_name
from engineworks.runtime.oip_tensors import free_axes

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)


def server_metadata() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    try:
        version = importlib.metadata.version("engineworks")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return {"name": "engineworks", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, versions: list[str], model: Manifest, backend: str) -> dict[str, Any]:
    """Return a model's inputs and outputs; shapes hold the batch axis, -1 where an axis is free."""
    return {
        "name": name,
        "versions": versions,
        "platform": "onnxruntime_onnx" if backend.startswith("onnx") else "tensorrt_plan",
        "inputs": [_tensor(tensor) for tensor in model.inputs],
        "outputs": [_tensor(tensor) for tensor in model.outputs],
    }


def model_config(name: str, model: Manifest, rules: Contract, joins: bool, backend: str) -> dict[str, Any]:
    """Return a model's configuration as the model configuration extension has it: dims without the batch axis."""
    cut = 1 if joins else 0
    batching = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
    return {
        "name": name,
        "platform": "",
        "backend": "onnxruntime" if backend.startswith("onnx") else "tensorrt",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": rules.largest if joins else 0,
        "input": [_configured(tensor, cut) for tensor in model.inputs],
        "output": [_configured(tensor, cut) for tensor in model.outputs],
        "parameters": {"precision": {"string_value": model.precision.asked}},
        **({"dynamic_batching": batching} if joins else {}),
    }


def joins_batches(model: Manifest) -> bool:
    """Tell whether requests may share a batch: where the first axis of every input and output is free."""
    return all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in (*model.inputs, *model.outputs))


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": protocol_name(tensor.dtype), "shape": free_axes(tensor.shape)}


def _configured(tensor: Tensor, cut: int) -> dict[str, Any]:
    kind = protocol_name(tensor.dtype)
    name = "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}"
    return {"name": tensor.name, "data_type": name, "dims": free_axes(tensor.shape)[cut:]}
