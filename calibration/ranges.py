"""The largest magnitude that each tensor of a graph reaches on given inputs.

Measured by ONNX Runtime on the float32 graph with every float tensor exposed, so that a value which FP16 cannot hold
is found before it turns into an infinity: ONNX Runtime's own FP16 path on the CPU computes in float32 and hides it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-14  # the smallest normal value (IEEE 754-2019, table 3.5): below it, bits are lost


def observe_ranges(graph: bytes, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, float]:
    """Return tensor name → largest magnitude, in the order of the graph's nodes.

    Args:
        graph: a serialised float32 ONNX model.
        inputs: name → array, one batch.

    The batch is run once; memory holds every tensor of the graph for it.
    """
    import onnxruntime as ort
    from onnx import ModelProto, ValueInfoProto

    model = ModelProto.FromString(graph)
    shown = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in shown)  # types are inferred
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = zip(names, session.run(names, dict(inputs)), strict=True)
    return {name: _largest(value) for name, value in values if _is_floating(value)}


def _is_floating(value: Any) -> bool:
    """Sequences of tensors come as lists, and have no magnitude."""
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def beyond_fp16(ranges: Mapping[str, float]) -> dict[str, float]:
    """Return those tensors whose magnitude FP16 cannot hold (65504), NaN among them."""
    return {name: value for name, value in ranges.items() if not value <= LARGEST_FP16}


def _largest(value: npt.NDArray[np.generic]) -> float:
    return float(np.abs(np.asarray(value, np.float64)).max()) if value.size else 0.0
