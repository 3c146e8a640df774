"""ONNX files of other makes: checked, their shapes inferred, simplified, and then proven like any other graph.

What they are compared with is the file itself, in float32, as it was given. External data is read only from inside the
file's folder.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.inputs import DTYPES, InputSpec
from engineworks.export.onnx_checks import (
    ONNX_DOMAINS,
    check_operators,
    check_outputs,
    check_shapes,
    inner_graphs,
    tensors_of,
)
from engineworks.export.original import FILE, Arrays, Original
from engineworks.export.recipe import NEWEST_OPSET, OLDEST_OPSET, Recipe
from engineworks.export.source import Source, digest_of, own_preprocessing
from engineworks.runtime.errors import BackendError, ExportError
from engineworks.runtime.manifest import Weights

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

    from engineworks.export.to_onnx import Exported

_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool"}
_OLDEST_IR = 8  # before 4, weights had to stand among the inputs


def onnx_source(recipe: Recipe) -> Source:
    """Read an ONNX file.

    Raises:
        ExportError: no such file, no valid ONNX, operators or types that are not taken here, data outside its folder,
            sizes that are not known, or a batch that is not the one asked for.
    """
    file = Path(recipe.model)
    shown = recipe.spec.shown
    if not file.is_file():
        raise ExportError(f"{file}: there is no such file.")
    model, digest = read_model(file)
    inputs = prepare(model, recipe)
    return Source(
        model=(recipe.spec.name, "onnx", f"the file {shown}, written by {_printable(model.producer_name)}"),
        weights=Weights("file", shown, True, digest, None),
        preprocessing=own_preprocessing(recipe, inputs),
        labels=(),
        scores="logits",
        identity=digest,
        open=lambda: _original(model, inputs, shown),
    )


def read_model(file: Path) -> "tuple[ModelProto, str]":
    """Parse a file and load its external data; return the model, and a digest of all that was read."""
    from onnx import ModelProto

    try:
        model = ModelProto.FromString(file.read_bytes())
    except Exception as error:  # protobuf's own, which has no types
        raise ExportError(f"{file.name}: is no ONNX file, or a damaged one.") from error
    if not model.graph.node:
        raise ExportError(f"{file.name}: holds no graph.")
    digests = [digest_of(file)]
    digests += [digest_of(data) for data in _load_external(model, file)]
    return model, digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _load_external(model: "ModelProto", file: Path) -> list[Path]:
    """Load what lies in files beside the graph, all of them inside its folder; return those files."""
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    folder, found = file.parent.resolve(), set[Path]()
    for tensor in tensors_of(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        data = (folder / location.replace("\0", "")).resolve()
        if not data.is_relative_to(folder) or not location:
            raise ExportError(f"{file.name}: tensor {tensor.name} lies outside the file's folder; that is not read.")
        if not data.is_file():
            raise ExportError(f"{file.name}: its data file {location} is not beside it.")
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # offsets beyond the file's end, a checker's own errors
            raise ExportError(f"{file.name}: tensor {tensor.name} cannot be read from {location} ({error}).") from error
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("external_data")
        found.add(data)
    return sorted(found)


def prepare(model: "ModelProto", recipe: Recipe) -> tuple[InputSpec, ...]:
    """Check a model, bring it to the operator set asked for, name its batch, and infer its shapes, in place.

    Returns:
        The inputs, without the batch.

    Raises:
        ExportError: whatever does not fit.
    """
    from onnx import checker

    shown = recipe.spec.shown
    try:
        checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's, shape inference's and protobuf's own
        raise ExportError(f"{shown}: is not valid ONNX: {_line(error)}.") from error
    check_operators(model, shown)
    _bring_to_opset(model, recipe)
    _name_nodes(model.graph, set())
    _drop_weights_from_inputs(model)
    names = [value.name for value in model.graph.input]
    if not names:
        raise ExportError(f"{shown}: takes no input.")
    check_shapes(recipe, names)
    check_outputs(model, shown)
    specs = tuple(_input(value, recipe) for value in model.graph.input)
    _infer(model, recipe)
    return specs


def _drop_weights_from_inputs(model: "ModelProto") -> None:
    """Old exporters list the weights among the inputs, and then a graph may be given others: its shapes stay open."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in weights]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)  # copies: those in ``kept`` are no part of the graph any more
    model.ir_version = max(model.ir_version, _OLDEST_IR)


def _name_nodes(graph: "GraphProto", taken: set[str]) -> None:
    """Give every node a name of its own, inner graphs' too: messages name them; ONNX Runtime takes no name twice."""
    for node in graph.node:
        wanted = node.name or f"{node.op_type}_{next(filter(None, node.output), '')}"
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        node.name = name
        taken.add(name)
        for inner in inner_graphs(node):
            _name_nodes(inner, taken)


def _bring_to_opset(model: "ModelProto", recipe: Recipe) -> None:
    """Convert an operator set that is not among those tested here, or not the one asked for."""
    from onnx import version_converter

    found = opset_of(model)
    wanted = recipe.opset or (
        recipe.graph_opset if recipe.precision == "bf16" else min(max(found, OLDEST_OPSET), NEWEST_OPSET)
    )
    if found == wanted:
        return
    try:
        model.CopyFrom(version_converter.convert_version(model, wanted))
    except Exception as error:  # its C++ raises RuntimeError and its own
        raise ExportError(
            f"{recipe.spec.shown}: cannot be brought from opset {found} to {wanted}: {_line(error)}. "
            "Export it with that opset."
        ) from error


def opset_of(model: "ModelProto") -> int:
    """Return the version of ONNX's own operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ONNX_DOMAINS)


def _input(value: "ValueInfoProto", recipe: Recipe) -> InputSpec:
    """Hold an input's axes against the batch and the shapes asked for, and name its batch axis."""
    shown, kind, batch = recipe.spec.shown, value.type.tensor_type, recipe.batch
    dtype = _TYPES.get(kind.elem_type)
    if dtype not in DTYPES:
        raise ExportError(f"{shown}: input {value.name} has a type that is not taken here. Give a float32 network.")
    axes = list(kind.shape.dim)
    if not axes:
        raise ExportError(f"{shown}: input {value.name} has no axes, or none that are known; a batch is needed.")
    if axes[0].dim_value > 0:
        size = axes[0].dim_value
        if (batch.min, batch.max) != (size, size):
            raise ExportError(
                f"{shown}: the batch of input {value.name} is fixed to {size}. "
                f"Pass --batch {size}, or export it with a free one."
            )
    elif batch.min == batch.max:
        axes[0].dim_value = batch.max
    else:
        axes[0].dim_param = "batch"
    given = next((shape for shape in recipe.shapes if shape.name in {"", value.name}), None)
    for place, axis in enumerate(axes[1:]):
        if given is not None and place < len(given.shape) and not axis.dim_value > 0:
            axis.dim_value = given.shape[place]
        if not axis.dim_value > 0:
            free = axis.dim_param or "unnamed"
            raise ExportError(
                f"{shown}: axis {place + 1} of input {value.name} is free ({free}), and only the batch may be. "
                f"Add --shape {value.name}:SIZES."
            )
    shape = tuple(int(axis.dim_value) for axis in axes[1:])
    if given is not None and (given.shape != shape or given.dtype != dtype):
        raise ExportError(f"--shape: {shown} takes {InputSpec(value.name, shape, dtype)}, got {given}.")
    return InputSpec(value.name, shape, dtype)


def _infer(model: "ModelProto", recipe: Recipe) -> None:
    """Infer every shape anew from the inputs; the outputs' batch axis takes the inputs' name."""
    from onnx import shape_inference

    shown, batch = recipe.spec.shown, recipe.batch
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model.graph.ClearField("value_info")
    try:
        model.CopyFrom(shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    except Exception as error:
        raise ExportError(f"{shown}: its shapes do not fit together: {_line(error)}.") from error
    for value in model.graph.output:
        kind = value.type.tensor_type
        rest = [axis for axis in list(kind.shape.dim)[1:] if not axis.HasField("dim_value")]
        if not kind.shape.dim or rest:
            raise ExportError(f"{shown}: the size of output {value.name} depends on the data, or is not known.")
        first = kind.shape.dim[0]
        if not first.dim_value and batch.min < batch.max:  # a Reshape hides its name; that it holds is seen in the run
            first.dim_param = "batch"
        elif not first.dim_value:
            first.dim_value = batch.max


def _original(model: "ModelProto", inputs: tuple[InputSpec, ...], shown: str) -> Original:
    from engineworks.runtime.backend import open_session

    session = open_session(model.SerializeToString(), "cpu", optimise="none")
    names = [value.name for value in model.graph.output]

    def run(*tensors: Any) -> dict[str, Any]:
        import torch

        arrays: dict[str, npt.NDArray[Any]] = {
            spec.name: tensor.numpy() for spec, tensor in zip(inputs, tensors, strict=True)
        }
        try:
            answers = session.run(arrays, names)
        except BackendError as error:
            rows = len(next(iter(arrays.values())))
            raise ExportError(
                f"{shown} does not run at batch {rows}; is its batch fixed inside? Pass --batch N. ({error})"
            ) from error
        return {
            name: torch.from_numpy(np.ascontiguousarray(answer)) for name, answer in zip(names, answers, strict=True)
        }

    return Original(
        inputs=inputs,
        run=run,
        export=lambda arrays, outputs, recipe: _export(model, arrays, outputs, recipe),
        parameters=_count(model),
        title=FILE,
        outputs=tuple(names),
    )


def _export(model: "ModelProto", arrays: Arrays, outputs: tuple[str, ...], recipe: Recipe) -> "Exported":
    from engineworks.export.clean import clean
    from engineworks.export.ladder import check
    from engineworks.export.pools import remove_empty_pools
    from engineworks.export.prove import few_rows
    from engineworks.export.rounding import rounded_graph
    from engineworks.export.simplify import simplify
    from engineworks.export.to_onnx import Exported

    few = few_rows(arrays, recipe.batch)
    how = "onnxslim" if recipe.simplify == "auto" else recipe.simplify
    route = f"{recipe.spec.shown} as given"
    try:
        graph = simplify(model, how, few)
        if how != "none":
            route = f"{recipe.spec.shown}, {len(model.graph.node)} nodes, simplified by {how}"
    except ExportError as error:
        if recipe.simplify != "auto":
            raise
        how, graph, route = "none", model, f"{route} ({error})"
    remove_empty_pools(graph)
    clean(graph, recipe.spec.name)
    check(graph, tuple(arrays), outputs)
    return Exported(graph, rounded_graph(graph), route, how)


def _count(model: "ModelProto") -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == 1)


def _printable(tool: str) -> str:
    return "".join(letter for letter in tool if letter.isprintable())[:80] or "an unnamed tool"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
