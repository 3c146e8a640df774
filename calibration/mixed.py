"""Which layers to leave in FP16: those whose rounding the answers feel most, within a share of the multiply-adds."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import Graph
from engineworks.calibration.layers import WEIGHTED, read_layer, read_weights
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.walk import Batches, run_all, session
from engineworks.calibration.weights import Int8Layer, Rest

if TYPE_CHECKING:
    from onnx import ModelProto

_GRAINS = 1000  # the budget is divided into so many parts


def layer_costs(model: "ModelProto", batch: Mapping[str, object]) -> dict[str, int]:
    """Return the multiply-adds of each layer with constant weights for one row: node → count.

    Args:
        model: a float32 graph.
        batch: its inputs, some rows.

    The shapes are those that ONNX Runtime computes for the batch.
    """
    from onnx import ValueInfoProto

    graph = Graph(model)
    found = [read_layer(graph, node) for node in graph.nodes if node.op_type in WEIGHTED]
    layers = [layer for layer in found if layer is not None]
    wanted = dict.fromkeys(name for layer in layers for name in (layer.data, layer.output))
    shown = [name for name in wanted if name not in graph.inputs]
    graph.model.graph.ClearField("output")
    graph.model.graph.output.extend(ValueInfoProto(name=name) for name in shown)
    values = session(graph.model, optimise="all").run(shown, dict(batch))
    shapes = {name: np.shape(value) for name, value in (*batch.items(), *zip(shown, values, strict=True))}
    costs = {}
    for layer in layers:
        weights = read_weights(graph, layer)
        rows = shapes[layer.output][0]
        if layer.kind in {"Conv", "ConvTranspose"}:  # one kernel for each value written, or for each value read
            counted = shapes[layer.output if layer.kind == "Conv" else layer.data]
            costs[layer.name] = int(np.prod(counted)) // rows * int(np.prod(weights.shape[1:]))
        else:
            width = weights.size // weights.shape[layer.axis]
            costs[layer.name] = int(np.prod(shapes[layer.output])) // rows * width
    return costs


def sensitivity(
    model: "ModelProto",
    scales: Mapping[str, float],
    weights: Mapping[str, Int8Layer],
    batches: Batches,
    candidates: Collection[str],
    *,
    rest: Rest = "fp16",
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Quantise one layer at a time and return what that adds to the answers: node → noise power.

    Args:
        model: the float32 graph.
        scales: tensor → step of its grid.
        weights: node → the int8 layer, for every candidate.
        batches: inputs.
        candidates: names of layers that would be int8.
        rest: the type that the scales are stored in.
        on_layer: told after each layer how many of all are done.
    """
    exact = run_all(model, batches, optimise="basic")
    every = {node.name for node in Graph(model).nodes if node.op_type in WEIGHTED}
    found = {}
    for number, name in enumerate(candidates):
        alone = place(model, left_out=every - {name})
        made = insert_qdq(model, alone, scales, weights=weights, rest=rest)
        answers = run_all(made, batches, optimise="basic")
        found[name] = float(np.square(answers - exact, dtype=np.float64).sum())
        on_layer(number + 1, len(candidates))
    return found


def pick(costs: Mapping[str, int], noise: Mapping[str, float], share: float) -> tuple[str, ...]:
    """Return the layers that together take the most noise away within a share of all multiply-adds.

    Args:
        costs: node → multiply-adds, for every layer of the network.
        noise: node → noise power, for those that may be left out.
        share: of the sum of ``costs``, 0 to 1.

    The answer is exact but for the budget's grain, a thousandth: costs are rounded up to it, so it is never exceeded.
    Noises are taken to add up, as independent roundings do.
    """
    budget = share * sum(costs.values())
    best: list[tuple[float, tuple[str, ...]]] = [(0.0, ())] * (_GRAINS + 1)
    for name in [name for name in noise if 0 < costs[name] <= budget]:
        size = int(np.ceil(costs[name] / budget * _GRAINS))
        for room in range(_GRAINS, size - 1, -1):
            before = best[room - size]
            if before[0] + noise[name] > best[room][0]:
                best[room] = (before[0] + noise[name], (*before[1], name))
    return best[_GRAINS][1]
