"""From a PyTorch module to a clean float32 ONNX graph, by ``torch.export`` and the dynamo converter.

``torch.onnx.export`` is never given the module itself: it answers a failed capture by narrowing the batch range or
fixing the batch, and passes that off as success. Here ``torch.export.export`` is called by us, with the range held
afterwards, and only its program is converted.
"""

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineworks.export.apart import Weights
from engineworks.export.blame import Guards, at, guards, node_line, user_line
from engineworks.export.fold import fold_batch_norm
from engineworks.export.program_checks import check_program
from engineworks.export.recipe import NEWEST_OPSET, OLDEST_OPSET
from engineworks.export.reference import RoundedRun, rounded_program
from engineworks.export.taps import Taps, program_taps
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    import onnx
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Exported:
    """A float32 graph, the original's rounded run (``reference.RoundedRun``), and how the graph was made, in words.

    ``simplifier`` is the library that simplified it, or ``none``.
    ``weights`` are those that lie beside the graph (``apart.part``), else there are none. ``taps`` lets its layers be
    held against the original's; None where the original is no PyTorch program.
    """

    graph: "onnx.ModelProto"
    run: RoundedRun
    route: str
    simplifier: str = "none"
    weights: Weights = field(default_factory=dict)
    taps: Taps | None = None


def to_onnx(
    module: "torch.nn.Module",
    inputs: "dict[str, torch.Tensor]",
    outputs: tuple[str, ...],
    *,
    batch: Batch,
    opset: int = 20,
) -> Exported:
    """Export a module in eval mode with a free batch axis.

    Args:
        module: float32, on the CPU, in eval mode throughout.
        inputs: name → example of at least 2 rows (1 where ``batch.max`` is 1); axis 0 is the batch.
        outputs: names for the outputs, in the order in which ``forward`` returns them.
        batch: the range that must hold; checked on the program.
        opset: ONNX operator set, 18 to 23.

    Raises:
        ExportError: training mode, randomness, a forward that changes the module's own state, sizes that depend on the
            data, a batch that the forward fixes or narrows, another opset, or anything that ``torch.export`` or the
            converter refuses; the message is the first line of theirs.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(f"opset: expected {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}.")
    _check_eval(module)
    folded = fold_batch_norm(module)
    program = _capture(folded, inputs, batch)
    check_program(program, batch)
    axes = _dynamic(module, len(inputs), batch, "batch")
    return _exported(program, tuple(inputs), outputs, axes, opset)


def from_program(
    program: "ExportedProgram", inputs: tuple[str, ...], outputs: tuple[str, ...], *, batch: Batch, opset: int
) -> Exported:
    """Convert a program whose range holds the batch.

    Args:
        program: of ``torch.export``.
        inputs: names for its inputs, in order.
        outputs: names for its outputs, in order.
        batch: fixed where min and max are equal, else free.
        opset: ONNX operator set, 18 to 23.

    Raises:
        ExportError: randomness, training mode, state, sizes that depend on the data, or what the converter refuses.
    """
    check_program(program)
    axes = None if batch.min == batch.max else tuple({0: "batch"} for _ in inputs)
    return _exported(program, inputs, outputs, axes, opset)


def _exported(
    program: "ExportedProgram", inputs: tuple[str, ...], outputs: tuple[str, ...], axes: Any, opset: int
) -> Exported:
    graph = _convert(program, inputs, outputs, axes, opset)
    return Exported(graph, rounded_program(program), "torch.export", taps=program_taps(program))


def _check_eval(module: "torch.nn.Module") -> None:
    training = [name or "the module itself" for name, child in module.named_modules() if child.training]
    if training:
        raise ExportError(
            f"expected eval mode, got training mode in {training[0]} and {len(training) - 1} more. Call .eval()."
        )


def _dynamic(module: "torch.nn.Module", count: int, batch: Batch, axis: Any) -> tuple[Any, ...] | None:
    """Return ``axis`` as axis 0 of each input, in the form of forward's arguments; None for a fixed batch."""
    if batch.min == batch.max:
        return None
    parameters = inspect.signature(module.forward).parameters.values()
    named = sum(part.kind in {part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD} for part in parameters)
    free = [{0: axis} for _ in range(count)]
    return (*free[:named], tuple(free[named:])) if count > named else tuple(free)  # what is left goes to *args


def _capture(module: "torch.nn.Module", inputs: "dict[str, torch.Tensor]", batch: Batch) -> "ExportedProgram":
    import torch
    from torch.export import Dim

    narrowed = Guards()
    axis = Dim("batch", min=batch.min, max=batch.max) if batch.min < batch.max else None
    try:
        with torch.no_grad(), lrn_as_one_node(), _quiet(), guards() as narrowed:
            return torch.export.export(
                module, tuple(inputs.values()), dynamic_shapes=_dynamic(module, len(inputs), batch, axis), strict=False
            )
    except Exception as error:  # torch.export raises many unrelated classes, the user's own among them
        raise ExportError(
            f"torch.export cannot capture this module for batches {batch.min} to {batch.max}: {_reason(error)}"
            f"{at(user_line(error) or narrowed.line)}"
        ) from error


def _convert(
    program: "ExportedProgram", inputs: tuple[str, ...], outputs: tuple[str, ...], axes: Any, opset: int
) -> "onnx.ModelProto":
    import torch

    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=True,
                verbose=False,
                dynamic_shapes=axes,
                input_names=list(inputs),
                output_names=list(outputs),
            )
    except Exception as error:
        raise ExportError(f"the ONNX converter refuses the program: {_refused(error, program)}") from error
    assert converted is not None  # it is None only where a file is asked for
    return converted.model_proto


@contextlib.contextmanager
def lrn_as_one_node() -> Iterator[None]:
    """While active, ``torch.nn.functional.local_response_norm`` is captured as one ONNX ``LRN`` node.

    Where ONNX's is another (it centres an even window elsewhere) or ONNX Runtime has none (of other ranks than 4), it
    is captured as it is.
    """
    import torch
    from torch.nn import functional

    original = functional.local_response_norm

    def one_node(
        x: "torch.Tensor", size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> "torch.Tensor":
        if size % 2 == 0 or x.dim() != 4:
            return original(x, size, alpha, beta, k)
        attributes: dict[str, Any] = {"size": size, "alpha": float(alpha), "beta": float(beta), "bias": float(k)}
        return torch.onnx.ops.symbolic("LRN", (x,), attributes, dtype=x.dtype, shape=x.shape, version=13)

    functional.local_response_norm = one_node  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.local_response_norm = original


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own log lines, programs and warnings off the terminal; its errors are raised."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refused(error: BaseException, program: "ExportedProgram") -> str:
    """Return what the converter says: its innermost words, and the user's line that made the node it stopped at."""
    line = user_line(error)
    while error.__cause__ is not None:
        stopped = re.search(r"node %(\w+)", str(error))
        for node in program.graph.nodes:
            if stopped and node.name == stopped[1]:
                line = node_line(node)
        error = error.__cause__
    return _reason(error) + at(line)


def _reason(error: BaseException) -> str:
    """Return what an error of torch says, without its advice: the first line, and the first point of a list below."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return f"{type(error).__name__}."
    points = [line.removeprefix("- ") for line in lines[1:] if line.startswith("- ")]
    said = " ".join([lines[0].split(" For more information")[0], *points[:1]])
    return said.split(" If you're using")[0].rstrip(".") + "."  # its advice is for another interface
