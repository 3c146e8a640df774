"""The noise floor of a graph that is no PyTorch program: run in float32, every tensor rounded to a half type.

This is written without ``half`` and ``emulate``, so that a fault of theirs does not lower the floor that they are held
against.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.reference import RoundedRun
from engineworks.runtime.backend import open_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_ONNX = {"fp16": 10, "bf16": 16}


def rounded_graph(model: "ModelProto") -> RoundedRun:
    """Make the rounded run of a float32 graph; values inside of control flow are left exact."""
    names = [value.name for value in model.graph.output]

    def run(inputs: Mapping[str, npt.NDArray[Any]], kind: Any) -> list[npt.NDArray[np.float32]]:
        session = open_session(with_rounding(model, kind).SerializeToString(), "cpu")
        return [np.asarray(answer, np.float32) for answer in session.run(dict(inputs), names)]

    return run


def with_rounding(model: "ModelProto", kind: Any) -> "ModelProto":
    """Return a copy whose float32 inputs, weights and results go through ``kind`` and back."""
    from onnx import ModelProto

    from engineworks.export.precision import value_types

    copy = ModelProto()
    copy.CopyFrom(model)
    floats = {name for name, found in value_types(model).items() if found == 1}
    floats |= {tensor.name for tensor in model.graph.initializer if tensor.data_type == 1}
    floats -= set(_sizes(model))
    given = [value.name for value in model.graph.input if value.name in floats]
    stored = [tensor.name for tensor in model.graph.initializer if tensor.name in floats]
    renamed = {name: f"{name}__rounded" for name in (*given, *stored)}
    nodes = [node for name in renamed for node in _casts(name, renamed[name], kind)]
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        results = [name for name in node.output if name in floats]
        for index, name in enumerate(node.output):
            node.output[index] = f"{name}__exact" if name in results else name
        nodes.append(node)
        nodes.extend(cast for name in results for cast in _casts(f"{name}__exact", name, kind))
    kept = [_copied(node) for node in nodes]
    copy.graph.ClearField("node")
    copy.graph.ClearField("value_info")
    copy.graph.node.extend(kept)
    return copy


def _sizes(model: "ModelProto") -> "Iterator[str]":
    """Yield the names of Resize's scales and region: ONNX holds them to float32 in every precision."""
    for node in model.graph.node:
        if node.op_type == "Resize":
            yield from node.input[1:3]


def _copied(node: "NodeProto") -> "NodeProto":
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _casts(source: str, result: str, kind: str) -> "Iterator[NodeProto]":
    from onnx import helper

    yield helper.make_node("Cast", [source], [f"{result}__{kind}"], name=f"{result}__to_{kind}", to=_ONNX[kind])
    yield helper.make_node("Cast", [f"{result}__{kind}"], [result], name=f"{result}__back", to=1)
