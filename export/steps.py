"""What quantising costs a layer of a Q/DQ graph: computed from the steps that the graph itself states."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.calibration.graph import Graph

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
_LEVELS = 128


@dataclass(frozen=True)
class Steps:
    """The steps of a graph's grids.

    ``read`` leads from a value to the tensors that are quantised before the node which makes it, with their steps;
    ``weights`` to the steps of that node's int8 weights, one for each output channel.
    """

    read: Mapping[str, tuple[tuple[str, float], ...]]
    weights: Mapping[str, Array]

    @property
    def shifts(self) -> tuple[float, ...]:
        """How far tensors may stand from where the original has them: 128 of their steps (``calibration.shift``)."""
        found = {step for reads in self.read.values() for _, step in reads}
        return tuple(_LEVELS * step for step in sorted(found))


def find_steps(model: "ModelProto") -> Steps:
    """Read the steps of a Q/DQ graph; empty for one without."""
    graph = Graph(model)
    read: dict[str, tuple[tuple[str, float], ...]] = {}
    weights: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        if node.op_type == "Cast":  # what comes out is still what its maker made
            read |= {node.output[0]: read[node.input[0]]} if node.input[0] in read else {}
            weights |= {node.output[0]: weights[node.input[0]]} if node.input[0] in weights else {}
            continue
        found = [one for name in node.input for one in _quantised(graph, name)]
        if found:
            read[node.output[0]] = tuple(found)
        made = graph.producer.get(node.input[1]) if len(node.input) > 1 else None
        if made is not None and made.op_type == "DequantizeLinear" and made.input[0] in graph.stored:
            scales = graph.constant(made.input[1])
            assert scales is not None, made.name
            weights[node.output[0]] = np.asarray(scales, np.float64).reshape(-1)
    return Steps(read, weights)


def _quantised(graph: Graph, name: str) -> Iterator[tuple[str, float]]:
    dequantised = graph.producer.get(name)
    if dequantised is None or dequantised.op_type != "DequantizeLinear":
        return
    quantised = graph.producer.get(dequantised.input[0])
    scale = graph.constant(dequantised.input[1])
    if quantised is not None and quantised.op_type == "QuantizeLinear" and scale is not None and scale.size == 1:
        yield quantised.input[0], float(np.asarray(scale, np.float64).reshape(()))


def rounding_noise(step: float) -> float:
    """Return the root mean square of rounding to a grid: a uniform error within half a step (Bennett, 1948)."""
    return step / math.sqrt(12)


def clipping_noise(values: Array, step: float) -> float:
    """Return the root mean square of what the ends of the grid cut off."""
    wide = np.asarray(values, np.float64)
    return float(np.sqrt(np.square(wide - np.clip(wide, -_LEVELS * step, (_LEVELS - 1) * step)).mean()))
