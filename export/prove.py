"""From a module to a typed graph that is proven: every step's post-condition, and the figures of every rung."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.calibration import LARGEST_FP16, SMALLEST_FP16, beyond_fp16, observe_ranges
from engineworks.export.clean import clean, modules
from engineworks.export.emitter import CannotTranslate
from engineworks.export.half import HalfType, to_half
from engineworks.export.head import Head, with_head
from engineworks.export.parity import Yardstick, climb
from engineworks.export.pools import remove_empty_pools
from engineworks.export.precision import check_realised
from engineworks.export.recipe import Recipe
from engineworks.export.reference import float32_floor, noise_floor, rounded_trace
from engineworks.export.samples import rows
from engineworks.export.simplify import simplify
from engineworks.export.to_onnx import Exported, to_onnx
from engineworks.export.translate import translate
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch, Rung

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import nn

Array = npt.NDArray[Any]
Floors = list[tuple[float, str]]
_FLOOR_ROWS = 4  # the floor's noise is averaged over every element of these rows' outputs
_LEAST_DB = 20.0  # noise of a tenth of the answers: to be as good as that proves nothing
_NEAR = 0.25  # of FP16's range: worth a note, for other inputs may go further


@dataclass(frozen=True)
class Proven:
    """A typed graph, the figures that hold it to the original, and what a reader should know of it.

    ``cpu`` is a graph for ONNX Runtime on the CPU where it has no kernels for the typed one, else None; ``route`` and
    ``simplifier`` say how the graph came about.
    """

    graph: "ModelProto"
    content: bytes
    cpu: bytes | None
    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]
    route: str
    simplifier: str


def export_graph(
    module: "nn.Module", inputs: Mapping[str, Array], outputs: tuple[str, ...], recipe: Recipe
) -> Exported:
    """Export the module and clean its graph; checked by ONNX's own checker.

    Raises:
        ExportError: whatever ``to_onnx``, the simplifier or the checker refuses.
    """
    import torch

    examples = {name: torch.from_numpy(array) for name, array in few_rows(inputs, recipe.batch).items()}
    return finished(_by_best_route(module, examples, outputs, recipe), inputs, outputs, recipe)


def few_rows(inputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
    """Return two rows of each input, or as few or many as the batch allows."""
    return {name: rows(array, _within(2, batch)) for name, array in inputs.items()}


def finished(exported: Exported, inputs: Mapping[str, Array], outputs: tuple[str, ...], recipe: Recipe) -> Exported:
    """Clean and simplify a graph that a route gave, and check it with ONNX's own checker.

    Raises:
        ExportError: whatever the simplifier or the checker refuses.
    """
    name = recipe.spec.name
    clean(exported.graph, name)
    remove_empty_pools(exported.graph)
    graph = simplify(exported.graph, recipe.simplify, few_rows(inputs, recipe.batch))
    clean(graph, name, known=modules(exported.graph))  # simplifiers drop what nodes carry, and leave marks
    check(graph, tuple(inputs), outputs)
    return replace(exported, graph=graph, simplifier="none" if recipe.simplify == "auto" else recipe.simplify)


def _within(wanted: int, batch: Batch) -> int:
    return min(max(wanted, batch.min), batch.max)


def _by_best_route(
    module: "nn.Module", examples: "dict[str, torch.Tensor]", outputs: tuple[str, ...], recipe: Recipe
) -> Exported:
    """Translate the module ourselves where that is certain; else take the stock route, and keep the reason.

    Raises:
        ExportError: the recipe wants one route alone, and that refuses.
    """
    if recipe.route == "dynamo":
        return to_onnx(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
    try:
        graph, traced = translate(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
        return Exported(graph, rounded_trace(traced), "fx translation")
    except CannotTranslate as reason:
        if recipe.route == "fx":
            raise ExportError(
                f"--route fx: our translation stops at {reason}. --route auto takes the other."
            ) from reason
        exported = to_onnx(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
        return replace(exported, route=f"{exported.route} (fx translation stops at {reason})")


def check(graph: "ModelProto", inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Hold a graph against ONNX's checker, and its inputs and outputs against the names it should have.

    Raises:
        ExportError: what the checker says, or the names that differ.
    """
    from onnx import checker

    try:
        checker.check_model(graph)
    except checker.ValidationError as error:
        raise ExportError(f"the graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    names = tuple(v.name for v in graph.graph.input), tuple(v.name for v in graph.graph.output)
    if names != (inputs, outputs):
        raise ExportError(
            f"the graph's inputs and outputs are {names[0]} and {names[1]}, expected {inputs} and {outputs}."
        )


def prove(
    exported: Exported,
    recipe: Recipe,
    yardstick: Yardstick,
    on_typed: Callable[[bytes], None],
    say: Callable[[Rung], None],
    head: Head | None = None,
) -> Proven:
    """Cast the graph as asked and compare every graph on the way with the original.

    Args:
        exported: the float32 graph and its program.
        recipe: the precision asked for.
        yardstick: what the original answers.
        on_typed: given the typed graph as soon as it stands, so that its engine can be compiled meanwhile.
        say: told the rung at the largest batch of each comparison.
        head: what is put before the graph's input, in float32 whatever the precision; None for nothing.

    Raises:
        ExportError: a weight or a value beyond FP16's range, or a layer in another precision than asked.
        ParityError: a graph that does not answer as the original does.
    """
    few = {name: rows(array, _within(_FLOOR_ROWS, recipe.batch)) for name, array in yardstick.inputs.items()}
    outputs = [value.name for value in exported.graph.graph.output]
    if head is not None:
        yardstick = _held_behind(exported.graph, outputs, yardstick)
    whole = with_head(exported.graph, head)
    plain = whole.SerializeToString()
    if recipe.precision == "fp32":
        check_realised(whole, "fp32")
        on_typed(plain)
        rungs = _climb(plain, "onnx-fp32", outputs, yardstick, _float32_floors(exported, few, yardstick), say)
        return Proven(whole, plain, None, rungs, (), exported.route, exported.simplifier)
    kind: HalfType = recipe.precision
    every = {name: rows(array, _within(len(array), recipe.batch)) for name, array in yardstick.inputs.items()}
    notes = _check_ranges(exported.graph, plain, every) if kind == "fp16" else ()
    typed = with_head(to_half(exported.graph, kind), head)
    check(typed, tuple(yardstick.inputs), tuple(outputs))
    check_realised(typed, kind)
    content = typed.SerializeToString()
    on_typed(content)
    floors, half_floors = _floors(exported, few, yardstick, kind)
    rungs = _climb(plain, "onnx-fp32", outputs, yardstick, floors, say)
    cpu = _emulated(typed, kind)
    rungs += _climb(cpu or content, f"onnx-{kind}{'-emulated' if cpu else ''}", outputs, yardstick, half_floors, say)
    return Proven(typed, content, cpu, rungs, notes, exported.route, exported.simplifier)


def _held_behind(graph: "ModelProto", outputs: list[str], yardstick: Yardstick) -> Yardstick:
    """Hold the probes, which are what stands behind a head, against the graph without it; they are then done with."""
    from engineworks.export.probe import hold

    if yardstick.probes is not None:
        session = open_session(graph.SerializeToString(), "cpu")
        sizes = yardstick.answers
        hold(session, outputs, yardstick.probes, min(sizes), free=len(sizes) > 1)
    return replace(yardstick, probes=None)


def _climb(
    graph: bytes,
    name: str,
    outputs: Sequence[str],
    yardstick: Yardstick,
    floors: Floors,
    say: Callable[[Rung], None],
) -> tuple[Rung, ...]:
    rungs = climb(graph, name, outputs, yardstick, floors)
    say(rungs[-1])
    return rungs


def _emulated(typed: "ModelProto", kind: HalfType) -> bytes | None:
    """ONNX Runtime's CPU kernels know FP16, and no BF16 convolution."""
    if kind == "fp16":
        return None
    from engineworks.export.emulate import emulate

    content: bytes = emulate(typed, kind).SerializeToString()
    return content


def _floors(exported: Exported, few: dict[str, Array], yardstick: Yardstick, kind: HalfType) -> tuple[Floors, Floors]:
    """Return the floors of float32 and of ``kind``, each with its source in words."""
    half = _half_floors(exported, few, yardstick, kind)
    if not all(floor >= _LEAST_DB for floor in half):
        raise ExportError(
            f"{kind} cannot carry this network: rounding every tensor to it keeps {min(half):.1f} dB of its answers, "
            f"{_LEAST_DB:.0f} are the least that means anything. Use {'--bf16 or ' if kind == 'fp16' else ''}--fp32."
        )
    return _gained(exported, half, kind), [(floor, f"{kind} rounding of the original") for floor in half]


def _float32_floors(exported: Exported, few: dict[str, Array], yardstick: Yardstick) -> Floors:
    """Return the floors of float32 alone, from a half type that can carry the network: FP16, or BF16 for its range."""
    half = _half_floors(exported, few, yardstick, "fp16")
    if all(floor >= _LEAST_DB for floor in half):
        return _gained(exported, half, "fp16")
    return _gained(exported, _half_floors(exported, few, yardstick, "bf16"), "bf16")


def _half_floors(exported: Exported, few: dict[str, Array], yardstick: Yardstick, kind: HalfType) -> list[float]:
    size = len(next(iter(few.values())))
    exact = yardstick.answers.get(size) or [rows(output, size) for output in yardstick.reference]
    return noise_floor(exported.run, few, exact, kind)


def _gained(exported: Exported, half: list[float], kind: HalfType) -> Floors:
    words = f"{kind} rounding of the original, float32's bits gained, sums lost"
    return [(float32_floor(floor, kind, exported.graph), words) for floor in half]


def _check_ranges(graph: "ModelProto", content: bytes, few: dict[str, Array]) -> tuple[str, ...]:
    """Refuse values that FP16 cannot hold, by layer; note those that come near its ends.

    Raises:
        ExportError: naming the first layer beyond, its module, and how far it goes.
    """
    ranges, where = observe_ranges(content, few), modules(graph)
    beyond = beyond_fp16(ranges)
    if beyond:
        name, value = next(iter(beyond.items()))
        raise ExportError(
            f"FP16 overflows: {_named(name, where)} reaches {value:.3g} on the sample inputs, FP16 ends at "
            f"{LARGEST_FP16:.0f} ({len(beyond)} such tensors). Use --bf16 or --fp32."
        )
    small = [name for name, value in ranges.items() if 0 < value < SMALLEST_FP16]
    notes = [
        f"FP16 underflow: {_named(name, where)} stays below {SMALLEST_FP16:.2g}; digits are lost." for name in small
    ]
    name, value = max(ranges.items(), key=lambda item: item[1])
    if value >= LARGEST_FP16 * _NEAR:
        notes.append(
            f"FP16 range: {_named(name, where)} reaches {value:.3g} of {LARGEST_FP16:.0f}; larger inputs may overflow."
        )
    return tuple(notes)


def _named(value: str, where: dict[str, str]) -> str:
    return f"{where[value]} ({value})" if where.get(value) else value
