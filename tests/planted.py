"""Faults to plant in a typed graph: each changes one node, and tells which value must be blamed for it.

A fault is a function of a model and a random generator. It changes the model in place and returns the name of the value
where the error enters (of a node that is gone, its name: what reads it must be blamed then); None where the network has
nothing of that kind.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
Fault = Callable[[ModelProto, np.random.Generator], str | None]


def nodes(model: ModelProto, *kinds: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def pick(found: Sequence[NodeProto], generator: np.random.Generator) -> NodeProto | None:
    return found[int(generator.integers(len(found)))] if found else None


def stored(graph: GraphProto, name: str) -> Any:
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)


def on_weights(change: Callable[[Array, np.random.Generator], Array | None], index: int = 1, *kinds: str) -> Fault:
    """Change the weights (1) or the bias (2) of one layer."""

    def plant(model: ModelProto, generator: np.random.Generator) -> str | None:
        layers = [
            node
            for node in nodes(model, *(kinds or ("Conv", "Gemm")))
            if len(node.input) > index and stored(model.graph, node.input[index]) is not None
        ]
        for node in generator.permutation(np.array(layers, object)) if layers else ():
            tensor = stored(model.graph, node.input[index])
            before = numpy_helper.to_array(tensor)
            after = change(before.astype(np.float32), generator)
            if after is None or np.array_equal(after.astype(before.dtype), before):
                continue
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after, before.dtype), tensor.name))
            return str(node.output[0])
        return None

    return plant


def scaled_channel(weights: Array, generator: np.random.Generator) -> Array:
    weights[generator.integers(len(weights))] *= np.float32(1.05)
    return weights


def turned_channel(weights: Array, generator: np.random.Generator) -> Array:
    weights[generator.integers(len(weights))] *= -1
    return weights


def swapped_channels(weights: Array, generator: np.random.Generator) -> Array | None:
    if len(weights) < 2:
        return None
    first, second = generator.choice(len(weights), 2, replace=False)
    weights[[first, second]] = weights[[second, first]]
    return weights


def transposed_kernels(weights: Array, generator: np.random.Generator) -> Array | None:
    square = weights.ndim == 4 and weights.shape[2] == weights.shape[3] > 1
    return weights.transpose(0, 1, 3, 2) if square else None


def mirrored_kernels(weights: Array, generator: np.random.Generator) -> Array | None:
    return weights[:, :, ::-1, ::-1] if weights.ndim == 4 and weights.shape[3] > 1 else None


def reversed_inputs(weights: Array, generator: np.random.Generator) -> Array | None:
    return weights[:, ::-1] if weights.ndim == 4 and weights.shape[1] > 1 else None


def dead_kernel(weights: Array, generator: np.random.Generator) -> Array | None:
    if weights.ndim != 4:
        return None
    weights[generator.integers(len(weights)), generator.integers(weights.shape[1])] = 0
    return weights


def eight_bits(weights: Array, generator: np.random.Generator) -> Array:
    step = np.abs(weights).max() / 127
    kept: Array = np.round(weights / step) * step
    return kept


def bfloat16(weights: Array, generator: np.random.Generator) -> Array:
    return ((weights.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def rolled(values: Array, generator: np.random.Generator) -> Array | None:
    return np.roll(values, 1, axis=0) if len(values) > 1 else None


def no_bias(values: Array, generator: np.random.Generator) -> Array:
    return np.zeros_like(values)


def turned(values: Array, generator: np.random.Generator) -> Array:
    return -values


def one_bias(values: Array, generator: np.random.Generator) -> Array:
    values[generator.integers(len(values))] += max(0.05, 0.1 * float(np.abs(values).max()))
    return values


def without(kind: str) -> Fault:
    """Take a node out: what read its result reads its input."""

    def plant(model: ModelProto, generator: np.random.Generator) -> str | None:
        node = pick([node for node in nodes(model, kind) if _inner(model, node)], generator)
        if node is None:
            return None
        model.graph.node.remove(node)
        for other in model.graph.node:
            for index, name in enumerate(other.input):
                other.input[index] = node.input[0] if name == node.output[0] else name
        return str(node.output[0])

    return plant


def _inner(model: ModelProto, node: NodeProto) -> bool:
    return node.output[0] not in {value.name for value in model.graph.output}


def become(kinds: tuple[str, ...], change: Callable[[NodeProto, ModelProto], bool | None]) -> Fault:
    """Change a node as ``change`` does, where it can."""

    def plant(model: ModelProto, generator: np.random.Generator) -> str | None:
        found = nodes(model, *kinds)
        for node in generator.permutation(np.array(found, object)) if found else ():
            if change(node, model) is not False:
                return str(node.output[0])
        return None

    return plant


def leaky(node: NodeProto, model: ModelProto) -> None:
    node.op_type = "LeakyRelu"
    node.attribute.append(helper.make_attribute("alpha", 0.01))


def averaging(node: NodeProto, model: ModelProto) -> None:
    node.op_type = "AveragePool"
    kept = [item for item in node.attribute if item.name in {"kernel_shape", "strides", "pads", "ceil_mode"}]
    node.ClearField("attribute")
    node.attribute.extend(kept)


def largest(node: NodeProto, model: ModelProto) -> None:
    node.op_type = "GlobalMaxPool"


def moved_padding(node: NodeProto, model: ModelProto) -> bool:
    for item in node.attribute:
        if item.name == "pads" and any(item.ints):
            half = len(item.ints) // 2
            item.ints[:] = [0] * half + [item.ints[index] + item.ints[half + index] for index in range(half)]
            return True
    return False


def swapped_parts(node: NodeProto, model: ModelProto) -> bool:
    if len(node.input) < 2 or node.input[0] == node.input[1]:
        return False
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return True


def twice_the_first(node: NodeProto, model: ModelProto) -> bool:
    if stored(model.graph, node.input[1]) is not None or node.input[0] == node.input[1]:
        return False
    node.input[1] = node.input[0]
    return True


def other_number(name: str, factor: float) -> Callable[[NodeProto, ModelProto], bool]:
    def change(node: NodeProto, model: ModelProto) -> bool:
        for item in node.attribute:
            if item.name == name:
                item.f *= factor
                return True
        return False

    return change


def coarse(model: ModelProto, generator: np.random.Generator) -> str | None:
    """Round one value to BF16 on its way."""
    node = pick([node for node in nodes(model, "Conv", "Gemm") if _inner(model, node)], generator)
    if node is None:
        return None
    name = str(node.output[0])
    place = list(model.graph.node).index(node)
    node.output[0] = f"{name}_fine"
    casts = [("fine", "bf16", 16), ("bf16", "", _type(model))]
    for start, end, kind in casts:
        made = helper.make_node("Cast", [f"{name}_{start}"], [f"{name}_{end}" if end else name], to=kind)
        made.name = f"coarse_{start}"
        place += 1
        model.graph.node.insert(place, made)
    return name


def _type(model: ModelProto) -> int:
    return 10 if any(tensor.data_type == 10 for tensor in model.graph.initializer) else 1


def on_head(change: Callable[[ModelProto], None]) -> Fault:
    """Change how the graph normalises pictures."""

    def plant(model: ModelProto, generator: np.random.Generator) -> str | None:
        made: list[str] = [name for node in model.graph.node for name in node.output if "_normalised" in name]
        if not made:
            return None
        change(model)
        return min(made, key=len)

    return plant


def _constant(model: ModelProto, ending: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))


def mean_and_std_swapped(model: ModelProto) -> None:
    mean, std = _constant(model, "_mean"), _constant(model, "_std")
    first, second = numpy_helper.to_array(mean), numpy_helper.to_array(std)
    mean.CopyFrom(numpy_helper.from_array(second, mean.name))
    std.CopyFrom(numpy_helper.from_array(first, std.name))


def bgr(model: ModelProto) -> None:
    for ending in ("_mean", "_std"):
        tensor = _constant(model, ending)
        values = np.ascontiguousarray(numpy_helper.to_array(tensor)[:, ::-1])
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def one_std(model: ModelProto) -> None:
    tensor = _constant(model, "_std")
    values = numpy_helper.to_array(tensor).copy()
    values[0, -1] *= np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def of_256(model: ModelProto) -> None:
    tensor = _constant(model, "_scale")
    tensor.CopyFrom(numpy_helper.from_array(np.array(256, np.float32), tensor.name))


FAULTS: dict[str, Fault] = {
    "weights: one channel is 5 % too large": on_weights(scaled_channel),
    "weights: one channel has the other sign": on_weights(turned_channel),
    "weights: two channels are swapped": on_weights(swapped_channels),
    "weights: kernels are transposed": on_weights(transposed_kernels),
    "weights: kernels are mirrored": on_weights(mirrored_kernels),
    "weights: input channels are reversed": on_weights(reversed_inputs),
    "weights: one kernel of one channel is zero": on_weights(dead_kernel),
    "weights: 8 bits are kept": on_weights(eight_bits),
    "weights: rounded to BF16": on_weights(bfloat16),
    "weights: every channel is its neighbour's": on_weights(rolled),
    "bias: zero": on_weights(no_bias, 2),
    "bias: of the other sign": on_weights(turned, 2),
    "bias: one channel is off": on_weights(one_bias, 2),
    "bias: every channel has its neighbour's": on_weights(rolled, 2),
    "graph: a ReLU is missing": without("Relu"),
    "graph: a ReLU leaks": become(("Relu",), leaky),
    "graph: a maximum is an average": become(("MaxPool",), averaging),
    "graph: an average is a maximum": become(("GlobalAveragePool",), largest),
    "graph: the padding is on one side": become(("Conv", "MaxPool"), moved_padding),
    "graph: two parts of a Concat are swapped": become(("Concat",), swapped_parts),
    "graph: a sum takes one side twice": become(("Add",), twice_the_first),
    "graph: LRN has twice its alpha": become(("LRN",), other_number("alpha", 2)),
    "graph: a value goes through BF16": coarse,
    "preprocessing: mean and deviation are swapped": on_head(mean_and_std_swapped),
    "preprocessing: channels are in the other order": on_head(bgr),
    "preprocessing: one deviation is 1 % off": on_head(one_std),
    "preprocessing: of 256 levels and not 255": on_head(of_256),
}
