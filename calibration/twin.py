"""The CPU twin: a second INT8 graph of the same network, laid out as ONNX Runtime's CPU kernels want it.

What TensorRT wants is slow there (a ReLU stays between a layer and its Q), and what is fast there TensorRT refuses: Q
and DQ on every result, uint8 behind a ReLU, biases as int32. ONNX Runtime's own quantiser writes that graph; the ranges
are ours, so that it costs no second search.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.calibration.bias import mean_change
from engineworks.calibration.graph import Array, Graph
from engineworks.calibration.layers import WEIGHTED, from_rows, read_bias, read_layer, read_weights, to_rows
from engineworks.calibration.qdq import set_bias
from engineworks.calibration.walk import run_all
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto

Ranges = Mapping[str, tuple[float, float]]
OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape",
    "Flatten",
)  # fmt: skip
_STEPS = {False: 127, True: 64}  # of the largest weight, in ONNX Runtime's symmetric int8 and its reduced range
_CUTTING = {"Relu", "Clip"}
_HANDING_ON = {"MaxPool", "Reshape", "Flatten", "Concat"}


def twin_tensors(model: "ModelProto") -> tuple[str, ...]:
    """Return the tensors whose ranges ``cpu_twin`` needs; those of the others that it quantises follow."""
    graph = Graph(model)
    return tuple(dict.fromkeys(source for name in _quantised(graph) for source in _sources(graph, name)))


def _quantised(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type in OPERATORS:
            yield from (name for name in (*node.input, node.output[0]) if name and not graph.is_constant(name))


def _sources(graph: Graph, name: str) -> Iterator[str]:
    """Yield the tensors whose ranges together are this one's.

    What an activation alone reads is kept as far as the activation lets it through; pooled, reshaped and joined values
    are values of the inputs.
    """
    readers = [reader for reader, _ in graph.readers.get(name, ())]
    if len(readers) == 1 and readers[0].op_type in _CUTTING and name not in graph.outputs:
        yield readers[0].output[0]
        return
    node = graph.producer.get(name)
    if node is None or node.op_type not in _HANDING_ON:
        yield name
        return
    for handed in node.input if node.op_type == "Concat" else node.input[:1]:
        yield from _sources(graph, handed)


def _ranges(model: "ModelProto", ranges: Ranges) -> Ranges:
    """Give every quantised tensor its range."""
    graph = Graph(model)
    found = {}
    for name in dict.fromkeys(_quantised(graph)):
        sources = list(_sources(graph, name))
        missing = [source for source in sources if source not in ranges]
        if missing:
            raise ExportError(f"tensor {missing[0]}: no range was given. Observe every tensor of twin_tensors().")
        lows, highs = zip(*(ranges[source] for source in sources), strict=True)
        found[name] = (min(0.0, *lows), max(0.0, *highs))
    return found


def cpu_twin(
    model: "ModelProto",
    ranges: Ranges,
    *,
    reduced: bool = False,
    means: Mapping[str, Array] = MappingProxyType({}),
    left_out: Collection[str] = (),
) -> "ModelProto":
    """Return a Q/DQ graph that ONNX Runtime fuses into integer kernels on a CPU.

    Args:
        model: the float32 graph.
        ranges: tensor → smallest and largest value, for every name of ``twin_tensors``.
        reduced: weights of 7 bits, for CPUs whose int8 products saturate (AVX2 and AVX-512 without VNNI).
        means: tensor → the mean of each of its channels, ``(C,)``: the biases of the layers that read one take back
            what rounding the weights adds to their outputs' means.
        left_out: names of layers that stay float32.

    Raises:
        ExportError: a tensor without a range.

    Activations are uint8 with their own zero point, 0 behind a ReLU; weights int8 per channel; biases int32.
    """
    from onnx import ModelProto

    source = ModelProto()
    source.CopyFrom(_compensated(model, means, _STEPS[reduced], left_out))
    quantiser = _quantiser(source, _ranges(model, ranges), reduced, left_out)
    quantiser.quantize_model()
    quantiser.model.topological_sort()  # it appends its nodes; ONNX wants them before their readers
    made: ModelProto = quantiser.model.model
    return made


def _compensated(
    model: "ModelProto", means: Mapping[str, Array], steps: int, left_out: Collection[str]
) -> "ModelProto":
    """Correct the biases of the layers whose inputs' means are known (``bias.mean_change``)."""
    graph = Graph(model)
    for node in graph.nodes:
        layer = read_layer(graph, node) if node.op_type in WEIGHTED and node.name not in left_out else None
        if layer is None or not layer.takes_bias or layer.data not in means or len(node.input) < 3:
            continue
        weights = read_weights(graph, layer)
        rows = to_rows(weights, layer)
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / steps
        rounded = from_rows(np.rint(rows / scales) * scales, layer, weights.shape).astype(np.float32)
        change = mean_change(weights, rounded, layer, np.asarray(means[layer.data], np.float64).ravel())
        set_bias(graph, layer, (read_bias(graph, layer) - change).astype(np.float32))
    return graph.model


def saturates() -> bool:
    """Tell whether this host's int8 kernels in ONNX Runtime saturate: two products of 255 · 127 do not fit 16 bits.

    Asked of the kernels themselves: a convolution of the largest numbers, fused and not. Where it is true, build the
    twin with ``reduced``, and measure what it answers.
    """
    from onnx import TensorProto, helper, numpy_helper

    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 8, 8]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.ones((64, 64, 1, 1), np.float32), "w")]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="y")
    graph = helper.make_graph([node], "probe", infos[:1], infos[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = cpu_twin(model, {"x": (0.0, 1.0), "y": (0.0, 64.0)})
    batches = [{"x": np.ones((1, 64, 8, 8), np.float32)}]
    exact, fused = run_all(made, batches), run_all(made, batches, optimise="all")
    return bool(np.abs(exact - fused).max() > 1.0)  # four steps of 64 / 255


def _quantiser(source: "ModelProto", ranges: Ranges, reduced: bool, left_out: Collection[str]) -> Any:
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    return QDQQuantizer(
        source,
        per_channel=True,
        reduce_range=reduced,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=list(left_out),
        op_types_to_quantize=list(OPERATORS),
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
