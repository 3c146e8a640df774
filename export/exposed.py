"""What a graph computes under every name: run once by ONNX Runtime with its values as outputs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.apart import Weights, whole
from engineworks.export.emulate import emulate
from engineworks.export.half import HalfType
from engineworks.export.precision import value_types
from engineworks.runtime.backend import open_session

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
_FLOAT = 1  # ONNX's number of float32


def exposed_values(
    graph: "ModelProto", inputs: Mapping[str, Array], weights: Weights, kind: HalfType | None
) -> dict[str, Array]:
    """Return every float32 value of a graph by its name, and of a half-precision graph every value as float32.

    Args:
        graph: not changed.
        inputs: by name; N rows.
        weights: those that lie beside it.
        kind: the half type that it computes in; None where it has none.

    A half-precision graph is run as ``emulate`` writes it: ONNX Runtime's CPU kernels would hand on what they have not
    rounded yet, so that a layer reads another value than can be seen of the one before.
    """
    from onnx import ModelProto

    shown = ModelProto()
    shown.CopyFrom(graph if kind is None else emulate(graph, kind))
    types = value_types(shown)
    names = [name for node in shown.graph.node for name in node.output if types.get(name) == _FLOAT]
    known = {value.name for value in shown.graph.output}
    for name in names:
        if name not in known:
            shown.graph.output.add(name=name).type.tensor_type.elem_type = _FLOAT
    session = open_session(whole(shown, weights), "cpu", optimise="none")
    try:
        answers = session.run(dict(inputs), names)
    finally:
        session.close()
    return {name: np.asarray(answer, np.float32) for name, answer in zip(names, answers, strict=True)}
