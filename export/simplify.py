"""Simplify a graph with a library, and believe it only where its answers stay the same, bit for bit.

On graphs from our own route no simplifier finds anything to do (measured: the same node counts, the same bits), and
they cost 0.1 to 5 s, so ``auto`` runs none there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engineworks.export.recipe import Simplifier
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto


def simplify(model: "ModelProto", how: Simplifier, inputs: Mapping[str, npt.NDArray[np.generic]]) -> "ModelProto":
    """Return the simplified graph, or the graph itself for ``auto`` and ``none``.

    Raises:
        ExportError: the library is absent or fails, or its graph does not answer ``inputs`` bit for bit as before.
    """
    if how in {"auto", "none"}:
        return model
    try:
        simpler = _onnxsim(model) if how == "onnxsim" else _onnxslim(model)
    except ExportError:
        raise
    except Exception as error:  # the libraries raise what their C++ and their users' shapes give them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"--simplify {how} failed: {reason}. Use --simplify none.") from error
    _check_same(model, simpler, how, inputs)
    return simpler


def _onnxsim(model: "ModelProto") -> "ModelProto":
    try:
        import onnxsim
    except ImportError as error:
        raise ExportError('--simplify onnxsim: it is not installed. pip install "engineworks[export]"') from error
    simpler, equal = onnxsim.simplify(model)
    if not equal:
        raise ExportError("--simplify onnxsim: its own check found other answers. Use --simplify none.")
    result: ModelProto = simpler
    return result


def _onnxslim(model: "ModelProto") -> "ModelProto":
    try:
        import onnxslim
    except ImportError as error:
        raise ExportError('--simplify onnxslim: it is not installed. pip install "engineworks[export]"') from error
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)  # onnxslim works in place
    result: ModelProto = onnxslim.slim(copy)
    return result


def _check_same(
    model: "ModelProto", simpler: "ModelProto", how: str, inputs: Mapping[str, npt.NDArray[np.generic]]
) -> None:
    names = [value.name for value in model.graph.output]
    if names != [value.name for value in simpler.graph.output]:
        raise ExportError(f"--simplify {how} renamed the outputs. Use --simplify none.")
    if [value.name for value in model.graph.input] != [value.name for value in simpler.graph.input]:
        raise ExportError(f"--simplify {how} took an input away. Use --simplify none.")
    before, after = (open_session(m.SerializeToString(), "cpu").run(dict(inputs), names) for m in (model, simpler))
    if not all(np.array_equal(x, y) for x, y in zip(before, after, strict=True)):
        raise ExportError(f"--simplify {how} changed the network's answers. Use --simplify none.")
