"""Check any Q/DQ graph, a stranger's too, against what TensorRT takes, before TensorRT sees it.

``refuse``: TensorRT does not build it, or builds it and computes something else than the graph says. ``warn``: it
builds, and is slower, larger or less exact than the same graph mended. Every fact was observed on TensorRT-RTX 1.7,
whose own messages name constants of its own making, or nothing (a computed scale ends its process).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from engineworks.calibration.graph import Array, Graph, attribute
from engineworks.calibration.layers import WEIGHTED, read_layer
from engineworks.calibration.placement import NEVER

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Severity = Literal["refuse", "warn"]
PAIR = ("QuantizeLinear", "DequantizeLinear")
_HALF_SCALES = 19
_INTEGER_OPERATORS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
)
_FLOAT_ONLY = frozenset({"normalisation", "scores", "average pooling", "resize"})


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT refuses, misreads or does badly."""

    node: str
    severity: Severity
    rule: str
    what: str
    mend: str
    mechanical: bool = False
    """``mend.fix`` does it, and the graph's answers stay the same."""


def lint(model: "ModelProto") -> list[Finding]:
    """Hold every Q and DQ of a graph against TensorRT's rules.

    Args:
        model: any ONNX graph; one without Q and DQ has nothing to find.

    Returns:
        What was found, what TensorRT refuses first, then in the order of the graph.
    """
    graph = Graph(model)
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    found = [finding for rule in RULES for finding in rule(graph)]
    return sorted(found, key=lambda one: (one.severity != "refuse", order[one.node]))


def pairs(graph: Graph, kind: str = "") -> Iterator["NodeProto"]:
    """Yield the Q and DQ nodes of a graph, or those of one kind."""
    return (node for node in graph.nodes if node.op_type in ((kind,) if kind else PAIR))


def integer_type(graph: Graph, node: "NodeProto") -> str:
    """Return the integer type that a Q writes or a DQ reads, by numpy's name; empty where it is not known."""
    from onnx import helper

    zero = _zero(graph, node)
    if zero is not None:
        return str(zero.dtype)
    if node.op_type == "QuantizeLinear":
        named = attribute(node, "output_dtype", 0)
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(named))) if named else "uint8"
    stored = graph.constant(node.input[0])
    if stored is not None:
        return str(stored.dtype)
    source = graph.producer.get(node.input[0])
    return integer_type(graph, source) if source is not None and source.op_type == "QuantizeLinear" else ""


def _zero(graph: Graph, node: "NodeProto") -> Array | None:
    return graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None


def is_weight(graph: Graph, name: str) -> bool:
    """Tell whether every reader of a dequantised constant takes it as its weights."""
    readers = graph.readers.get(name, [])
    return bool(readers) and all(node.op_type in WEIGHTED and position == 1 for node, position in readers)


# --- what TensorRT refuses or misreads ---


def integer_operators(graph: Graph) -> Iterator[Finding]:
    """ONNX Runtime's operator-oriented format: no parser for it in TensorRT."""
    for node in graph.nodes:
        if node.op_type in _INTEGER_OPERATORS or (node.op_type in PAIR and node.domain not in {"", "ai.onnx"}):
            what = f"{node.op_type} of {node.domain or 'ONNX'} is an operator that TensorRT does not read"
            yield Finding(node.name, "refuse", "operator", what, "Quantise with Q/DQ nodes (QuantFormat.QDQ).")


def types(graph: Graph) -> Iterator[Finding]:
    """Only int8 is taken as it stands; uint8 is read as int8 with a warning, and half of the range is lost."""
    for node in pairs(graph):
        kind = integer_type(graph, node)
        if kind in {"int8", "", "float8_e4m3fn", "int4"}:
            continue
        if node.op_type == "DequantizeLinear" and kind == "int32":
            what = f"{node.input[0]} is dequantised from int32; TensorRT adds biases in float"
            yield Finding(node.name, "refuse", "int32 bias", what, "Store the bias as float.", mechanical=True)
            continue
        shifted = kind == "uint8" and _all_equal(_zero(graph, node), 128)
        what = f"{node.input[0]} is {kind}, TensorRT reads int8" + (" and drops the zero point" if shifted else "")
        mend = "Shift by 128 to int8." if shifted else "Calibrate again, symmetric and int8."
        yield Finding(node.name, "refuse", "integer type", what, mend, mechanical=shifted)


def zero_points(graph: Graph) -> Iterator[Finding]:
    """Every zero point must be 0."""
    for node in pairs(graph):
        zero = _zero(graph, node)
        if len(node.input) > 2 and node.input[2] and zero is None:
            yield Finding(node.name, "refuse", "zero point", "its zero point is computed", "Store it, as 0.")
        elif zero is not None and zero.any() and not (zero.dtype == np.uint8 and _all_equal(zero, 128)):
            what = f"its zero point is {zero.reshape(-1)[np.argmax(zero.reshape(-1) != 0)]}"
            yield Finding(node.name, "refuse", "zero point", what, "Calibrate again with symmetric ranges.")


def scales(graph: Graph) -> Iterator[Finding]:
    """Scales are stored, positive and finite; a vector of one is taken for a scale per channel."""
    for node in pairs(graph):
        values = graph.constant(node.input[1])
        if values is None:
            mend = "Store it as an initializer: calibrate, do not quantise dynamically."
            yield Finding(node.name, "refuse", "scale", "its scale is computed, which ends TensorRT's parser", mend)
        elif not (np.isfinite(values).all() and (values > 0).all()):
            wrong = values.reshape(-1)[int(np.argmin(np.isfinite(values) & (values > 0)))]
            what = f"its scale holds {wrong}; expected finite numbers above 0"
            yield Finding(
                node.name, "refuse", "scale", what, "Look at the images: was this tensor constant, or overflowing?"
            )
        elif values.shape == (1,) and not _weight_side(graph, node):
            what = "its scale is a vector of one: TensorRT takes it per channel and computes the layer in float"
            yield Finding(node.name, "warn", "scale shape", what, "Make it a scalar.", mechanical=True)


def half_scales(graph: Graph) -> Iterator[Finding]:
    """FP16 scales came with operator set 19; before it TensorRT computes such a layer in float."""
    for node in pairs(graph):
        values = graph.constant(node.input[1])
        if values is not None and values.dtype != np.float32 and graph.opset < _HALF_SCALES:
            what = f"its scale is {values.dtype} in operator set {graph.opset}"
            yield Finding(node.name, "refuse", "opset", what, f"Export with opset {_HALF_SCALES} or later.")


def constants(graph: Graph) -> Iterator[Finding]:
    """Weights are stored as int8, other constants in float: an int8 scalar is refused, the rest only rounds."""
    for node in pairs(graph, "DequantizeLinear"):
        source = graph.producer.get(node.input[0])
        quantised = source is not None and source.op_type == PAIR[0] and graph.is_constant(source.input[0])
        if not quantised and not graph.is_constant(node.input[0]):
            continue
        name = source.input[0] if quantised and source is not None else node.input[0]
        if integer_type(graph, node) == "int32":
            continue  # a bias: told by its type
        if not is_weight(graph, node.output[0]):
            severity: Severity = "warn" if quantised or _rank(graph, name) else "refuse"
            what = f"the constant {name} is quantised, and is no layer's weight"
            yield Finding(node.name, severity, "constant", what, "Leave it float.", mechanical=True)
        elif quantised:
            what = f"the weight {name} is stored in float with a Q behind it: four times the file"
            yield Finding(node.name, "warn", "float weight", what, "Store it as int8 with DQ alone.", mechanical=True)


def partners(graph: Graph) -> Iterator[Finding]:
    """A Q is read by DQs of its own scale alone; a DQ reads a Q or a constant."""
    for node in pairs(graph, "QuantizeLinear"):
        if node.output[0] in graph.outputs:
            yield Finding(
                node.name, "refuse", "pair", "its int8 result is an output of the graph", "Put a DQ behind it."
            )
        for reader, _ in graph.readers.get(node.output[0], ()):
            if reader.op_type != PAIR[1] and NEVER.get(reader.op_type, ("",))[0] not in {"moves only", "max pooling"}:
                what = f"{reader.name} ({reader.op_type}) reads its int8 result without a DQ"
                yield Finding(node.name, "refuse", "pair", what, f"Put a DQ before {reader.name}.")
            elif reader.op_type == PAIR[1] and not _same(graph, node, reader):
                what = f"{reader.name} dequantises with another scale than it quantises with"
                yield Finding(node.name, "warn", "pair", what, "Give both one scale.")


# --- what builds, and should not stay so ---


def axes(graph: Graph) -> Iterator[Finding]:
    """Scales per channel belong to weights, along their output channels."""
    for node in pairs(graph):
        values = graph.constant(node.input[1])
        if values is None or values.size <= 1:
            continue
        if not _weight_side(graph, node):
            what = f"{node.input[0]} has {values.size} scales: TensorRT computes the layer in float"
            yield Finding(node.name, "warn", "per channel", what, "One scale for an activation.")
        elif node.op_type == PAIR[1]:
            yield from _wrong_axis(graph, node)


def _wrong_axis(graph: Graph, node: "NodeProto") -> Iterator[Finding]:
    for reader, _ in graph.readers.get(node.output[0], ()):
        wanted = _weight_axis(reader)
        rank = len(_weight_shape(graph, node))
        found = int(attribute(node, "axis", 1)) % max(rank, 1)
        if reader.op_type in WEIGHTED and found != wanted:
            what = (
                f"the scales of {reader.name}'s weights lie along axis {found}; its output channels are axis {wanted}"
            )
            yield Finding(node.name, "warn", "weight axis", what, f"Quantise along axis {wanted}.")


def _weight_axis(node: "NodeProto") -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def half_quantised(graph: Graph) -> Iterator[Finding]:
    """A layer computes in int8 where its data and its weights are both quantised."""
    for node in graph.nodes:
        if node.op_type not in WEIGHTED:
            continue
        data, weight = (_dequantised(graph, name) for name in node.input[:2])
        if data != weight and (data or read_layer(graph, node) is None):
            which = ("data", "weights") if data else ("weights", "data")
            if not data and not _constant_behind(graph, node.input[1]):
                continue  # a product of two activations, one of which happens to be quantised for another reader
            what = f"its {which[0]} are int8 and its {which[1]} are not: it computes in float"
            yield Finding(node.name, "warn", "half quantised", what, f"Quantise its {which[1]} too, or neither.")


def sums(graph: Graph) -> Iterator[Finding]:
    """A residual sum reads its skip as int8; a Q on the side of the layer breaks their fusion."""
    for node in graph.nodes:
        if node.op_type == "Add" and all(_dequantised(graph, name) for name in node.input):
            bare = [
                graph.producer[graph.producer[name].input[0]].input[0] for name in node.input if _paired(graph, name)
            ]
            layers = [
                name for name in bare if (made := graph.producer.get(name)) is not None and made.op_type in WEIGHTED
            ]
            if layers:
                what = f"both inputs are quantised, {layers[0]} among them, which its layer would hand over in float"
                yield Finding(node.name, "warn", "residual sum", what, "Quantise the skip input alone.")


def float_only(graph: Graph) -> Iterator[Finding]:
    """Q and DQ around what TensorRT computes in float cost two kernels and round for nothing."""
    for node in graph.nodes:
        rule = NEVER.get(node.op_type, ("",))[0]
        if rule in _FLOAT_ONLY and node.input and _paired(graph, node.input[0]):
            what = f"{node.op_type} computes in float and its input is rounded to int8 first"
            yield Finding(node.name, "warn", "float only", what, "Leave its input float.")


def fused(graph: Graph) -> Iterator[Finding]:
    """A Q between a layer and its activation keeps them apart."""
    for node in graph.nodes:
        if NEVER.get(node.op_type, ("",))[0] != "activation" or not _paired(graph, node.input[0]):
            continue
        quantiser = graph.producer[graph.producer[node.input[0]].input[0]]
        made = graph.producer.get(quantiser.input[0])
        if made is not None and made.op_type in WEIGHTED:
            what = f"Q and DQ stand between {made.name} and its {node.op_type}"
            yield Finding(quantiser.name, "warn", "activation", what, f"Quantise behind {node.name}.")


def scores(graph: Graph) -> Iterator[Finding]:
    """The network's outputs are for people: rounding them to int8 makes ties."""
    for node in pairs(graph, "DequantizeLinear"):
        if node.output[0] in graph.outputs and not graph.is_constant(node.input[0]):
            what = f"the output {node.output[0]} is rounded to int8"
            yield Finding(node.name, "warn", "scores", what, "Leave outputs float.")


def repeated(graph: Graph) -> Iterator[Finding]:
    """One tensor, one Q."""
    seen: dict[str, str] = {}
    for node in pairs(graph, "QuantizeLinear"):
        first = seen.setdefault(node.input[0], node.name)
        if first != node.name:
            what = f"{node.input[0]} is quantised by {first} already"
            yield Finding(node.name, "warn", "repeated", what, "Let all its readers share one Q and DQ.")


Rule = Callable[[Graph], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    integer_operators, types, zero_points, scales, half_scales, constants, partners,
    axes, half_quantised, sums, float_only, fused, scores, repeated,
)  # fmt: skip


def _all_equal(values: Array | None, wanted: int) -> bool:
    return values is not None and values.size > 0 and bool((values == wanted).all())


def _same(graph: Graph, first: "NodeProto", second: "NodeProto") -> bool:
    both = [graph.constant(node.input[1]) for node in (first, second)]
    return first.input[1] == second.input[1] or (
        both[0] is not None and both[1] is not None and np.array_equal(both[0].ravel(), both[1].ravel())
    )


def _weight_side(graph: Graph, node: "NodeProto") -> bool:
    """Tell whether a Q or DQ stands on constants."""
    if graph.is_constant(node.input[0]):
        return True
    source = graph.producer.get(node.input[0])
    return source is not None and source.op_type == PAIR[0] and graph.is_constant(source.input[0])


def _rank(graph: Graph, name: str) -> int:
    values = graph.constant(name)
    return 0 if values is None else values.ndim


def _weight_shape(graph: Graph, node: "NodeProto") -> tuple[int, ...]:
    source = graph.producer.get(node.input[0])
    name = source.input[0] if source is not None and source.op_type == PAIR[0] else node.input[0]
    values = graph.constant(name)
    return () if values is None else values.shape


def _dequantised(graph: Graph, name: str) -> bool:
    node = graph.producer.get(name)
    return node is not None and node.op_type == PAIR[1]


def _constant_behind(graph: Graph, name: str) -> bool:
    node = graph.producer.get(name)
    return node is not None and node.op_type == PAIR[1] and _weight_side(graph, node)


def _paired(graph: Graph, name: str) -> bool:
    """Tell whether a tensor comes from a DQ behind a Q."""
    node = graph.producer.get(name)
    source = graph.producer.get(node.input[0]) if node is not None and node.op_type == PAIR[1] else None
    return source is not None and source.op_type == PAIR[0]
