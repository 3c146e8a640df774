"""Programs saved by ``torch.export.save``: ``net.pt2``, loaded only where the user trusts it, for it holds a pickle."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.export.inputs import DTYPES, InputSpec
from engineworks.export.interrupts import import_tools
from engineworks.export.original import Arrays, Original
from engineworks.export.recipe import Recipe
from engineworks.export.source import Source, digest_of, own_preprocessing
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Weights

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from engineworks.export.to_onnx import Exported


def program_source(recipe: Recipe) -> Source:
    """Load a program.

    Raises:
        ExportError: not trusted, no such file, damaged, or a batch range that does not hold the one asked for.
    """
    file, shown = Path(recipe.model), recipe.spec.shown
    if not file.is_file():
        raise ExportError(f"{file}: there is no such file.")
    if not recipe.trust:
        raise ExportError(f"{shown}: a .pt2 file holds a pickle, which can run any code. If you trust it: --trust.")
    import_tools()
    from engineworks.export.program_checks import check_program

    program = _load(file, shown)
    _check_weights(program, shown)
    check_program(program)
    inputs = _inputs(program, recipe)
    return Source(
        model=(recipe.spec.name, "pt2", f"the program {shown}"),
        weights=Weights("file", shown, True, digest_of(file), None),
        preprocessing=own_preprocessing(recipe, inputs),
        labels=(),
        scores="logits",
        identity=digest_of(file),
        open=lambda: _original(program, inputs),
    )


def _load(file: Path, shown: str) -> "ExportedProgram":
    import logging
    import warnings

    import torch

    log = logging.getLogger("torch.export")
    before, log.disabled = log.disabled, True  # it logs a traceback of what is then raised
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(file)
    except Exception as error:  # zip's, pickle's and torch's own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ExportError(f"{shown}: cannot be loaded as a program of torch.export ({reason}).") from error
    finally:
        log.disabled = before


def _check_weights(program: "ExportedProgram", shown: str) -> None:
    import torch

    for name, tensor in program.state_dict.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ExportError(
                f"{shown}: expected float32 weights, {name} is {tensor.dtype}. Export the float32 network."
            )


def _inputs(program: "ExportedProgram", recipe: Recipe) -> tuple[InputSpec, ...]:
    """Read names, shapes and dtypes off the program, and hold its batch against the one asked for."""
    batch, shown = recipe.batch, recipe.spec.shown
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value: Any = values.get(str(name))
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        if dtype not in DTYPES or value.dim() == 0:
            raise ExportError(f"{shown}: input {name} ({dtype or 'no tensor'}) has no batch, or a type not taken here.")
        if any(not isinstance(size, int) for size in value.shape[1:]):
            raise ExportError(f"{shown}: input {name} has a free axis beside the batch; only the batch may be free.")
        if isinstance(value.shape[0], int) and (batch.min, batch.max) != (value.shape[0],) * 2:
            raise ExportError(f"{shown}: its batch is fixed to {value.shape[0]}. Pass --batch {value.shape[0]}.")
        specs.append(InputSpec(str(name), tuple(value.shape[1:]), dtype))
    if not specs:
        raise ExportError(f"{shown}: takes no input.")
    for bounds in program.range_constraints.values():
        low, high = bounds.lower, bounds.upper  # numbers of sympy, which has an infinity of its own
        if not (low <= batch.min and batch.max <= high):
            top = "any number" if "oo" in str(high) else high
            raise ExportError(f"{shown}: was exported for batches of {low} to {top}, not {batch.min} to {batch.max}.")
    given = [replace(shape, name=shape.name or specs[0].name) for shape in recipe.shapes]
    if given and sorted(given, key=lambda spec: spec.name) != sorted(specs, key=lambda spec: spec.name):
        raise ExportError(f"--shape: {shown} takes {', '.join(map(str, specs))}.")
    return tuple(specs)


def _original(program: "ExportedProgram", inputs: tuple[InputSpec, ...]) -> Original:
    module = program.module()
    return Original(
        inputs=inputs,
        run=module,
        export=lambda arrays, outputs, recipe: _export(program, arrays, outputs, recipe),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def _export(program: "ExportedProgram", arrays: Arrays, outputs: tuple[str, ...], recipe: Recipe) -> "Exported":
    from engineworks.export.prove import finished
    from engineworks.export.to_onnx import from_program

    exported = from_program(program, tuple(arrays), outputs, batch=recipe.batch, opset=recipe.graph_opset)
    if recipe.batch.min == recipe.batch.max:
        _fix_batch(exported.graph, recipe.batch.max)
    return finished(exported, arrays, outputs, recipe)


def _fix_batch(graph: "ModelProto", size: int) -> None:
    """Write the one batch size into a graph whose program leaves it free."""
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    graph.graph.ClearField("value_info")  # they name the free axis; whoever needs them infers them
