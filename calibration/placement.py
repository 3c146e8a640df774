"""Where TensorRT wants Q and DQ, rule by rule, and why: every decision is a record.

Sources: NVIDIA's TensorRT developer guide, "Q/DQ placement recommendations", and Model-Optimizer's quantiser for ONNX;
checked against TensorRT-RTX 1.7.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engineworks.calibration.graph import Graph, attribute
from engineworks.calibration.layers import WEIGHTED, read_layer
from engineworks.runtime.trt_runtime import Flavour

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Role = Literal["input", "weight", "bias", "skip", "value"]
Reader = tuple[str, int]
_SMALL = 16  # channels; int8 kernels work on tiles of 16 or 32, and fewer leave most of a tile empty
_TILE = 8


@dataclass(frozen=True)
class Decision:
    """One tensor at one node: quantised or not, by which rule, and why in words."""

    node: str
    tensor: str
    role: Role
    quantised: bool
    rule: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a node."""

    quantised: bool
    rule: str
    why: str


@dataclass(frozen=True)
class Placement:
    """All decisions for a graph, and what follows from them."""

    decisions: tuple[Decision, ...]
    layers: tuple[str, ...]
    """The weighted nodes that compute in int8, in the graph's order."""
    activations: Mapping[str, tuple[Reader, ...]]
    """Tensor that gets one Q/DQ pair → the (node, input) that read it quantised."""
    scale_of: Mapping[str, str]
    """Quantised tensor → the tensor whose scale it takes; itself, but for what a MaxPool hands on."""


def place(model: "ModelProto", *, left_out: Collection[str] = (), flavour: Flavour = "tensorrt") -> Placement:
    """Decide for every node of a float graph what TensorRT should find quantised.

    Args:
        model: float32 or FP16, without Q or DQ.
        left_out: names of weighted nodes that stay in the float type.
        flavour: the compiler; ``tensorrt`` is what NVIDIA documents, ``rtx`` leaves in float what it would not
            compute in int8.
    """
    graph = Graph(model)
    weighted_nodes = [node for node in graph.nodes if node.op_type in WEIGHTED]
    verdicts = {node.name: judge_layer(graph, node, left_out, flavour) for node in weighted_nodes}
    layers = tuple(name for name, verdict in verdicts.items() if verdict.quantised)
    decisions: list[Decision] = []
    for node in graph.nodes:
        if node.name in verdicts:
            decisions.extend(_layer_decisions(graph, node, verdicts[node.name]))
        elif node.op_type == "Add":
            decisions.extend(_add_decisions(graph, node, frozenset(layers)))
        elif node.op_type != "Constant":
            decisions.append(_other_decision(graph, node))
    activations = _activations(graph, decisions)
    return Placement(
        tuple(decisions), layers, activations, {name: _pooled(graph, name, activations) for name in activations}
    )


# --- weighted layers: the first rule that answers decides ---


def constant_weights(graph: Graph, node: "NodeProto") -> Verdict | None:
    """Only a product with constant weights has weights to store as int8."""
    if read_layer(graph, node) is None:
        return Verdict(False, "constant weights", "its weights are computed, transposed or on the left: it stays float")
    return None


def two_dimensional(graph: Graph, node: "NodeProto") -> Verdict | None:
    """A MatMul by a stack of matrices has no output-channel axis."""
    if node.op_type == "MatMul" and len(_shape(graph, node)) != 2:
        return Verdict(False, "one matrix", "int8 weights per channel need one two-dimensional matrix")
    return None


def single_column(graph: Graph, node: "NodeProto") -> Verdict | None:
    """A matrix times a vector is bound by memory; TensorRT has no int8 kernel for it."""
    layer = read_layer(graph, node)
    if layer is not None and node.op_type in {"Gemm", "MatMul"} and _shape(graph, node)[layer.axis] == 1:
        return Verdict(False, "single column", "one output column makes it a matrix-vector product: no int8 kernel")
    return None


def grouped(graph: Graph, node: "NodeProto") -> Verdict | None:
    """Grouped and depthwise convolutions: int8 where the output channels fill tiles and the window is 3 or more."""
    groups = int(attribute(node, "group", 1))
    if groups == 1 or node.op_type not in {"Conv", "ConvTranspose"}:
        return None
    outputs, window = _channels(graph, node)[1], _shape(graph, node)[2:]
    if outputs % _TILE or min(window, default=1) < 3:
        words = f"{groups} groups, {outputs} output channels, window {_times(window)}"
        return Verdict(False, "grouped", f"{words}: int8 wants a multiple of {_TILE} and a window of at least 3")
    return Verdict(True, "grouped", f"{groups} groups whose {outputs} output channels fill int8 tiles")


def small_channels(graph: Graph, node: "NodeProto") -> Verdict | None:
    """Fewer than 16 channels leave int8 tiles empty, unless the other side makes up for it."""
    if node.op_type not in {"Conv", "ConvTranspose"} or int(attribute(node, "group", 1)) != 1:
        return None
    inputs, outputs = _channels(graph, node)
    if min(inputs, outputs) >= _SMALL:
        return None
    window = _shape(graph, node)[2:]
    fills = inputs % _TILE == 0 or outputs % _TILE == 0
    if fills and len(set(window)) == 1 and (node.input[0] in graph.inputs or max(inputs, outputs) >= _SMALL):
        return None
    words = f"{inputs} → {outputs} channels, window {_times(window)}"
    return Verdict(False, "small channels", f"{words}: int8 tiles of {_SMALL} would stay nearly empty")


def first_layer(graph: Graph, node: "NodeProto") -> Verdict | None:
    """The first layer is quantised as any other: the input tensor gets the scale of the images."""
    if node.input[0] in graph.inputs:
        return Verdict(True, "first layer", "reads the network's input, which 8-bit images fit")
    return None


def last_layer(graph: Graph, node: "NodeProto") -> Verdict | None:
    """The last layer computes in int8, its scores leave in the float type."""
    if node.output[0] in graph.outputs:
        return Verdict(True, "last layer", "computes in int8; its scores are never quantised")
    return None


def transposed(_graph: Graph, node: "NodeProto") -> Verdict | None:
    """TensorRT-RTX 1.7 takes int8 transposed convolutions and computes them in float16, for every target, unsaid."""
    if node.op_type == "ConvTranspose":
        return Verdict(False, "transposed", "TensorRT-RTX computes int8 transposed convolutions in float16, unsaid")
    return None


def weighted(_graph: Graph, node: "NodeProto") -> Verdict | None:
    """Every other layer with weights computes in int8."""
    return Verdict(True, "weighted layer", f"{node.op_type} has int8 kernels: its input and its weights are quantised")


Rule = Callable[[Graph, "NodeProto"], Verdict | None]
LAYER_RULES: tuple[Rule, ...] = (
    constant_weights, two_dimensional, single_column, grouped, small_channels, first_layer, last_layer, weighted,
)  # fmt: skip
OWN_RULES: Mapping[Flavour, tuple[Rule, ...]] = {"tensorrt": (), "rtx": (transposed,)}


def judge_layer(
    graph: Graph, node: "NodeProto", left_out: Collection[str] = (), flavour: Flavour = "tensorrt"
) -> Verdict:
    """Ask the rules for weighted layers in order, the compiler's own first; the first answer stands."""
    if node.name in left_out:
        return Verdict(False, "left out", "kept in the float type for the answers' sake")
    rules = (*OWN_RULES[flavour], *LAYER_RULES)
    return next(verdict for rule in rules if (verdict := rule(graph, node)) is not None)


def _shape(graph: Graph, node: "NodeProto") -> tuple[int, ...]:
    values = graph.stored.get(node.input[1])
    if values is not None:
        return tuple(values.dims)
    constant = graph.constant(node.input[1])
    return () if constant is None else constant.shape


def _channels(graph: Graph, node: "NodeProto") -> tuple[int, int]:
    first, second, *_ = _shape(graph, node)
    groups = int(attribute(node, "group", 1))
    return (second * groups, first) if node.op_type == "Conv" else (first, second * groups)


def _times(window: tuple[int, ...]) -> str:
    return "×".join(map(str, window))


def _layer_decisions(graph: Graph, node: "NodeProto", verdict: Verdict) -> Iterator[Decision]:
    said = (verdict.quantised, verdict.rule, verdict.why)
    yield Decision(node.name, node.input[0], "input", *said)
    layer = read_layer(graph, node)
    if layer is None:
        return
    per = f"int8 per channel, axis {layer.axis}; stored so, with a DQ behind it" if verdict.quantised else verdict.why
    yield Decision(node.name, layer.weight, "weight", verdict.quantised, verdict.rule, per)
    if layer.bias:
        yield Decision(node.name, layer.bias, "bias", False, "float bias", "TensorRT adds it to the sums in float")


# --- everything else ---


def residual_sides(graph: Graph, node: "NodeProto", layers: Collection[str]) -> tuple[int, int] | None:
    """Return which input of an Add comes from the layer that it fuses with, and which is the skip; None for no such.

    Where both inputs come from layers, the layer's side is the longer way from their nearest common ancestor.
    """
    if len(node.input) != 2 or any(graph.is_constant(name) for name in node.input) or node.input[0] == node.input[1]:
        return None
    mine = [_fuses(graph, name, layers) for name in node.input]
    if not any(mine):
        return None
    if not all(mine):
        return (0, 1) if mine[0] else (1, 0)
    ways = [graph.ancestors(name) for name in node.input]
    shared = [name for name in ways[0] if name in ways[1] and not graph.is_constant(name)]
    nearest = min(shared, key=lambda name: ways[0][name] + ways[1][name], default=None)
    if nearest is not None and ways[1][nearest] > ways[0][nearest]:
        return 1, 0
    return 0, 1


def _fuses(graph: Graph, name: str, layers: Collection[str]) -> bool:
    producer = graph.producer.get(name)
    return producer is not None and producer.name in layers and graph.sole_reader(name)


def _add_decisions(graph: Graph, node: "NodeProto", layers: Collection[str]) -> Iterator[Decision]:
    sides = residual_sides(graph, node, layers)
    if sides is None:
        yield _decide(node, node.input[0], False, "element-wise", "no int8 layer ends in this sum: it stays float")
        return
    layer, skip = sides
    why = "the sum is fused into the layer before it: no Q between them"
    yield _decide(node, node.input[layer], False, "residual sum", why)
    why = "the skip is read by the fused sum as int8; quantising both sides would undo the fusion"
    yield Decision(node.name, node.input[skip], "skip", True, "residual sum", why)


NEVER: Mapping[str, tuple[str, str]] = {
    "LRN": ("normalisation", "it squares its input: eight bits do not carry that; TensorRT runs it in float32"),
    "MaxPool": ("max pooling", "it commutes with quantisation: the layer behind it is quantised, it is passed through"),
    "AveragePool": ("average pooling", "it does not commute with quantisation and has no weights: it stays float"),
    "GlobalAveragePool": (
        "average pooling",
        "it does not commute with quantisation and has no weights: it stays float",
    ),
    "ReduceMean": ("average pooling", "it does not commute with quantisation and has no weights: it stays float"),
    "Concat": ("concat", "quantised once behind it, with one scale for all its parts"),
    "Resize": ("resize", "interpolation in int8 rounds twice: it stays float"),
    "Softmax": ("scores", "exponentials of eight bits are no probabilities: it stays float"),
    "LogSoftmax": ("scores", "exponentials of eight bits are no probabilities: it stays float"),
    "Sigmoid": ("scores", "it is steep where eight bits are coarse: it stays float"),
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Pad", "Slice", "Split", "Dropout"),
        ("moves only", "it computes nothing: whoever reads its result decides"),
    ),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "PRelu"), ("activation", "fused between the layer and the next Q")),
}


def _other_decision(graph: Graph, node: "NodeProto") -> Decision:
    rule, why = NEVER.get(node.op_type, ("element-wise", f"{node.op_type} has no weights: it stays float"))
    values = [name for name in node.input if name and not graph.is_constant(name)]
    return _decide(node, next(iter(values), ""), False, rule, why)


def _decide(node: "NodeProto", tensor: str, quantised: bool, rule: str, why: str) -> Decision:
    return Decision(node.name, tensor, "value", quantised, rule, why)


# --- tensors ---


def _activations(graph: Graph, decisions: list[Decision]) -> dict[str, tuple[Reader, ...]]:
    """Gather who reads each quantised tensor: it gets one Q/DQ pair, however many they are."""
    found: dict[str, tuple[Reader, ...]] = {}
    for decision in decisions:
        if decision.quantised and decision.role in {"input", "skip"}:
            inputs = graph.by_name[decision.node].input
            position = 0 if decision.role == "input" else list(inputs).index(decision.tensor)
            found[decision.tensor] = (*found.get(decision.tensor, ()), (decision.node, position))
    return found


def _pooled(graph: Graph, name: str, activations: Mapping[str, object]) -> str:
    """Follow MaxPools back to a quantised tensor: quantised by the same scale, the pooling commutes exactly."""
    source, best = name, name
    while (node := graph.producer.get(source)) is not None and node.op_type == "MaxPool":
        source = node.input[0]
        best = source if source in activations else best
    return best
