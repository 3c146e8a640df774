"""An export in words and in a manifest: the lines that a person reads, and the record that a service reads."""

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engineworks.export.cache import versions
from engineworks.export.count import multiply_adds
from engineworks.export.engine import Choice, Engine
from engineworks.export.looking import as_json, kept
from engineworks.export.original import TITLES
from engineworks.export.precision import realised
from engineworks.export.recipe import Recipe
from engineworks.export.report import report
from engineworks.export.source import Source
from engineworks.runtime.bundle import CALIBRATION, CPU_GRAPH, GRAPH, LAYER_VALUES, LAYERS, REFERENCE, REPORT
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import EngineRecord, Manifest, Model, Precision, Rung, Tensor, Weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, ValueInfoProto

    from engineworks.export.ladder import Proven
    from engineworks.export.layers import Layer
    from engineworks.export.parity import Yardstick
    from engineworks.export.to_onnx import Exported

STOPPED = "accuracy budget: the search was stopped"  # how the note of such a bundle begins
QUIET_NOTES = ("no engine", "passed over", "the engine was compiled")  # said otherwise, or true of every bundle
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}


def count(number: int) -> str:
    """Write a number of parameters as people do: ``6.6 M``."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def pictures_line(preprocessing: Mapping[str, Any] | None) -> str:
    """Say what a stranger's weights are taken to expect: nothing else would show that it is wrong."""
    if preprocessing is None:
        return "no --mean and --std: the bundle takes prepared arrays, and classifies no pictures"
    means, spreads = (", ".join(f"{value:.3g}" for value in preprocessing[key]) for key in ("mean", "std"))
    return f"taken to be normalised to a mean of {means} and a standard deviation of {spreads}"


def weights_line(weights: Weights) -> str:
    """Say where the weights come from, and loudly where they were never trained."""
    if weights.trained:
        return f"{weights.origin}: {weights.detail}" + (f" ({weights.licence})" if weights.licence else "")
    return f"UNTRAINED ({weights.detail}): its answers mean nothing. Pass --weights imagenet or --weights FILE."


def graph_line(exported: "Exported") -> str:
    """Say how large the graph is, and how it was made."""
    graph = exported.graph
    size = f"{len(graph.graph.node)} nodes, {count(_weights(graph))} weights, opset {_opset(graph)}"
    return f"{size}, by {exported.route}"


def rung_line(rung: Rung) -> tuple[str, str]:
    """Say how a comparison went: the rung's name, and its figures at its largest batch."""
    found = "equal, bit for bit" if rung.sqnr_db is None else f"{rung.sqnr_db:.1f} dB"
    return (
        rung.candidate,
        f"{found} against {TITLES[rung.reference]} (needs {rung.required_db:.1f}), top-1 agrees on {rung.top1:.0%}",
    )


def layers_line(name: str, layers: "Sequence[Layer]") -> str:
    """Say how near a graph's layers are to the original's own, each on the inputs that it had."""
    worst, noisiest = max(layers, key=lambda layer: layer.excess), min(layers, key=lambda layer: layer.db)
    return (
        f"{name}: {len(layers)} values beside PyTorch's own; the furthest differs by {worst.excess:.2g} of what "
        f"rounding explains ({worst.module or worst.value}), the noisiest keeps {noisiest.db:.1f} dB "
        f"({noisiest.module or noisiest.value})"
    )


def engine_line(engine: Engine | None, choice: Choice, recipe: Recipe) -> str:
    """Say which engine was built, for what, or why there is none."""
    if recipe.engine == "none":
        return "as asked, none"
    if engine is None:
        return f"none: {'; '.join(choice.passed_over)}"
    size = f"{len(engine.plan) / 1e6:.1f} MB"
    return f"{engine.flavour} {engine.version} for {', '.join(engine.targets)}: {size} in {engine.seconds:.1f} s"


def manifest(
    recipe: Recipe,
    source: Source,
    choice: Choice,
    parameter_count: int,
    proven: "Proven",
    engine: Engine | None,
) -> Manifest:
    """Assemble the record of an export; the files are filled in when they are written."""
    graph = proven.graph
    return Manifest(
        name=recipe.name,
        created=_now(),
        model=Model(*source.model, parameter_count),
        weights=source.weights,
        precision=Precision(recipe.precision, realised(graph)),
        inputs=tuple(_tensor(value) for value in graph.graph.input),
        outputs=tuple(_tensor(value) for value in graph.graph.output),
        scores=source.scores,
        batch=recipe.batch,
        preprocessing=None if source.preprocessing is None else dict(source.preprocessing),
        labels=fitting_labels(source, recipe, graph),
        graph=_graph_record(proven),
        parity=proven.rungs,
        engines=() if engine is None else (engine_record(engine),),
        notes=(*proven.notes, *_notes(recipe, engine, choice)),
        recipe=recipe.to_json(),
        tools=versions(),
        files={},
    )


def files(manifest_of: Manifest, proven: "Proven", engine: Engine | None, yardstick: "Yardstick") -> dict[str, bytes]:
    """Return the bundle's files, the manifest not among them."""
    arrays = {f"input:{name}": array for name, array in yardstick.inputs.items()}
    arrays |= {f"output:{t.name}": array for t, array in zip(manifest_of.outputs, yardstick.reference, strict=True)}
    content = {GRAPH: proven.content, REFERENCE: npz(arrays)}
    if proven.cpu is not None:
        content[CPU_GRAPH] = proven.cpu
    if proven.calibration is not None:
        content[CALIBRATION] = proven.calibration
    if proven.layers:
        content |= {LAYERS: as_json(proven.layers), LAYER_VALUES: npz(kept(proven.layers))}
    content[REPORT] = report(manifest_of, content, proven.answers)
    if engine is not None:
        content[manifest_of.engines[0].file] = engine.plan
    return content


def npz(arrays: "Mapping[str, npt.NDArray[np.generic]]") -> bytes:
    """Write arrays as an ``.npz`` whose bytes depend on them alone."""
    import numpy as np

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return stream.getvalue()


def fitting_labels(source: Source, recipe: Recipe, graph: "ModelProto") -> tuple[str, ...]:
    """Return the labels where the network has as many classes; a network's usual ones are dropped where it has not.

    Raises:
        ExportError: the user's own labels are of another number.
    """
    shapes = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.graph.output]
    classes = shapes[0][1] if len(shapes) == 1 and len(shapes[0]) == 2 else None
    if recipe.labels and len(source.labels) != classes:
        raise ExportError(f"--labels: got {len(source.labels)} names for {classes or 'what is no'} classes.")
    return source.labels if len(source.labels) == classes else ()


def _graph_record(proven: "Proven") -> dict[str, object]:
    graph = proven.graph
    return {
        "opset": _opset(graph),
        "nodes": len(graph.graph.node),
        "weights": _weights(graph),
        **_multiply_adds(graph),
        "simplifier": proven.simplifier,
        "route": proven.route,
        "cpu": GRAPH if proven.cpu is None else CPU_GRAPH,
    }


def _opset(graph: "ModelProto") -> int:
    return next(int(entry.version) for entry in graph.opset_import if entry.domain in {"", "ai.onnx"})


def _multiply_adds(graph: "ModelProto") -> dict[str, object]:
    """Count one image's; nothing is recorded where the graph does not tell."""
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1  # 0 where it is free
    try:
        return {"multiply_adds": multiply_adds(graph) // batch}
    except ExportError:
        return {}


def engine_record(engine: Engine) -> EngineRecord:
    """Say of an engine what the manifest records of it, and which file of the bundle it is."""
    file = f"engines/{engine.flavour}-{'-'.join(engine.targets)}.engine"
    return EngineRecord(file, engine.flavour, engine.version, engine.targets, engine.layers, dict(engine.layer_types))


def _notes(recipe: Recipe, engine: Engine | None, choice: Choice) -> list[str]:
    if engine is None:
        return [f"no engine: {'; '.join(choice.passed_over)}"]
    notes = ["the engine was compiled, not run: its outputs are compared where a GPU is"]
    notes += [f"passed over: {reason}" for reason in choice.passed_over]
    notes += [f"engine without {target}: {reason}" for target, reason in engine.left_out.items()]
    notes += [f"the compiler warns: {warning}" for warning in engine.warnings]
    if recipe.precision == "fp32" and engine.tf32:
        notes.append("the engine's float32 layers may round operands to TF32 (11 bits): the compiler keeps that on")
    return notes


def _weights(graph: "ModelProto") -> int:
    return sum(math.prod(tensor.dims) for tensor in graph.graph.initializer if tensor.data_type in {1, 10, 16})


def _tensor(value: "ValueInfoProto") -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return Tensor(value.name, _TYPES[kind.elem_type], shape)


def _now() -> str:
    """Return the time in UTC; SOURCE_DATE_EPOCH (reproducible-builds.org) sets it."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ExportError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {epoch!r}.") from error
    return moment.isoformat(timespec="seconds")
