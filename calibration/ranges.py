"""The largest magnitude that each tensor of a graph reaches on given inputs.

Measured by ONNX Runtime on the float32 graph with every float tensor exposed, so that a value which FP16 cannot hold
is found before it turns into an infinity: ONNX Runtime's own FP16 path on the CPU computes in float32 and hides it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from engineworks.runtime.backend import open_session

LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-14  # the smallest normal value (IEEE 754-2019, table 3.5): below it, bits are lost


def observe_ranges(
    graph: bytes,
    inputs: Mapping[str, npt.NDArray[np.generic]],
    at_once: int = 0,
    weights: Mapping[str, npt.NDArray[np.generic]] = MappingProxyType({}),
) -> dict[str, float]:
    """Return tensor name → largest magnitude, in the order of the graph's nodes.

    Args:
        graph: a serialised float32 ONNX model.
        inputs: name → array, axis 0 the rows.
        at_once: so many rows are run at a time; memory holds every tensor of the graph for them. 0: all.
        weights: the initializers that the graph refers to as external data, by name.

    Raises:
        BackendError: the graph does not load or run.
    """
    from onnx import ModelProto, ValueInfoProto

    model = ModelProto.FromString(graph)
    shown = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in shown)  # types are inferred
    session = open_session(model.SerializeToString(), "cpu", weights=weights)
    largest: dict[str, float] = {}
    for part in _parts(inputs, at_once):
        for name, value in zip(names, session.run(part, names), strict=True):
            if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):  # no sequence of tensors
                largest[name] = float(np.maximum(largest.get(name, 0.0), _largest(value)))  # keeps NaN
    session.close()
    return largest


def _parts(inputs: Mapping[str, npt.NDArray[np.generic]], at_once: int) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Cut the rows into parts of one size; where they do not divide, the last part overlaps the one before."""
    count = min(len(array) for array in inputs.values()) if at_once else 0
    if count <= at_once:
        yield dict(inputs)
        return
    for start in range(0, count, at_once):
        first = min(start, count - at_once)
        yield {name: array[first : first + at_once] for name, array in inputs.items()}


def beyond_fp16(ranges: Mapping[str, float]) -> dict[str, float]:
    """Return those tensors whose magnitude FP16 cannot hold (65504), NaN among them."""
    return {name: value for name, value in ranges.items() if not value <= LARGEST_FP16}


def _largest(value: npt.NDArray[np.generic]) -> float:
    return float(np.maximum(value.max(), -value.min())) if value.size else 0.0
