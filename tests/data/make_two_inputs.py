"""Write the two graphs that the runtime's tests open; run again only to change them (it needs onnx).

``two_inputs.onnx``: ``left`` and ``right`` (batch, 3) to ``sum`` (batch, 3) and ``dot`` (batch, 1).
``four_classes.onnx``: a picture's mean red, green and blue, and how far they are from 1 together: (batch, 4).
"""

from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

FOLDER = Path(__file__).parent


def main() -> None:
    for name, graph in (("two_inputs", two_inputs()), ("four_classes", four_classes())):
        checker.check_model(graph, full_check=True)
        (FOLDER / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))


def two_inputs() -> ModelProto:
    nodes = [
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Mul", ["left", "right"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axes"], ["dot"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "two_inputs",
        [value("left", 3), value("right", 3)],
        [value("sum", 3), value("dot", 1)],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    return model(graph)


def four_classes() -> ModelProto:
    weights = np.array([[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1]], np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "four_classes",
        [value("image", 3, 8, 8)],
        [value("scores", 4)],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([0, 0, 0, 1], np.float32), "bias"),
        ],
    )
    return model(graph)


def value(name: str, *shape: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def model(graph: GraphProto) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="tests")


if __name__ == "__main__":
    main()
