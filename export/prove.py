"""From a module to a typed graph that is proven: every step's post-condition, and the figures of every rung."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.calibration import LARGEST_FP16, SMALLEST_FP16, beyond_fp16
from engineworks.export.apart import Weights, part, whole, without_references
from engineworks.export.clean import clean, modules
from engineworks.export.emitter import CannotTranslate
from engineworks.export.half import HalfType, half_weights, to_half
from engineworks.export.head import Head, with_head
from engineworks.export.memory import give_back_memory
from engineworks.export.parity import Yardstick, climb
from engineworks.export.pools import remove_empty_pools
from engineworks.export.precision import check_realised
from engineworks.export.probe import differing, hold
from engineworks.export.recipe import Recipe
from engineworks.export.referee import Answers, Referee
from engineworks.export.reference import float32_floor, noise_floor, rounded_trace
from engineworks.export.samples import rows
from engineworks.export.simplify import simplify
from engineworks.export.to_onnx import Exported, to_onnx
from engineworks.export.translate import translate
from engineworks.runtime.backend import OrtSession, open_session
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
_MUCH = 1 << 28  # bytes of weights: from here on memory is worth the moment that tidying takes
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
    exported, known = _by_best_route(module, examples, outputs, recipe)
    return finished(exported, inputs, outputs, recipe, known)


def few_rows(inputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
    """Return two rows of each input, or as few or many as the batch allows."""
    return {name: rows(array, _within(2, batch)) for name, array in inputs.items()}


def finished(
    exported: Exported,
    inputs: Mapping[str, Array],
    outputs: tuple[str, ...],
    recipe: Recipe,
    known: Weights = MappingProxyType({}),
) -> Exported:
    """Clean and simplify a graph that a route gave, check it with ONNX's own checker, and take its large weights apart.

    Args:
        exported: what the route gave.
        inputs: the samples, by the names that the graph's inputs should have.
        outputs: the names that its outputs should have.
        recipe: what was asked for.
        known: arrays that may be weights of the graph, by name: memory then holds those once.

    Raises:
        ExportError: whatever the simplifier or the checker refuses.
    """
    name = recipe.spec.name
    clean(exported.graph, name)
    remove_empty_pools(exported.graph)
    graph = simplify(exported.graph, recipe.simplify, few_rows(inputs, recipe.batch))
    clean(graph, name, known=modules(exported.graph))  # simplifiers drop what nodes carry, and leave marks
    parted, weights = part(graph, known)
    check(parted, tuple(inputs), outputs)
    simplifier = "none" if recipe.simplify == "auto" else recipe.simplify
    return replace(exported, graph=parted, weights=weights, simplifier=simplifier)


def _within(wanted: int, batch: Batch) -> int:
    return min(max(wanted, batch.min), batch.max)


def _by_best_route(
    module: "nn.Module", examples: "dict[str, torch.Tensor]", outputs: tuple[str, ...], recipe: Recipe
) -> tuple[Exported, Weights]:
    """Translate the module ourselves where that is certain; else take the stock route, and keep the reason.

    Returns:
        What was exported, and PyTorch's own arrays by name: weights of the graph may be found among them.

    Raises:
        ExportError: the recipe wants one route alone, and that refuses.
    """
    import torch

    if recipe.route == "dynamo":
        return to_onnx(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset), {}
    try:
        graph, traced = translate(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
        held = ((name, tensor.detach()) for name, tensor in traced.named_parameters())
        known = {name: tensor.numpy() for name, tensor in held if tensor.dtype == torch.float32}
        return Exported(graph, rounded_trace(traced), "fx translation"), known
    except CannotTranslate as reason:
        if recipe.route == "fx":
            raise ExportError(
                f"--route fx: our translation stops at {reason}. --route auto takes the other."
            ) from reason
        exported = to_onnx(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
        return replace(exported, route=f"{exported.route} (fx translation stops at {reason})"), {}


def check(graph: "ModelProto", inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Hold a graph against ONNX's checker, and its inputs and outputs against the names it should have.

    Raises:
        ExportError: what the checker says, or the names that differ.
    """
    from onnx import checker

    try:
        checker.check_model(without_references(graph))
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
    if head is not None:
        yardstick = _held_behind(exported, yardstick)
    with Referee(yardstick.inputs) as referee:
        ladder = _Ladder(exported, recipe, yardstick, referee, say, head)
        ladder.tidy()
        return ladder.plain(on_typed) if recipe.precision == "fp32" else ladder.half(recipe.precision, on_typed)


def _held_behind(exported: Exported, yardstick: Yardstick) -> Yardstick:
    """Hold the probes, which are what stands behind a head, against the graph without it; they are then done with."""
    if yardstick.probes is not None:
        session = open_session(exported.graph.SerializeToString(), "cpu", weights=exported.weights)
        outputs, sizes = [value.name for value in exported.graph.graph.output], yardstick.answers
        hold(session, outputs, yardstick.probes, min(sizes), free=len(sizes) > 1)
        session.close()
    return replace(yardstick, probes=None)


@dataclass(frozen=True)
class _Ladder:
    """One proof: the referee runs graphs while PyTorch finds the floors that their answers are held to."""

    exported: Exported
    recipe: Recipe
    yardstick: Yardstick
    referee: Referee
    say: Callable[[Rung], None]
    head: Head | None

    def plain(self, on_typed: Callable[[bytes], None]) -> Proven:
        """Prove the float32 graph."""
        graph = with_head(self.exported.graph, self.head)
        check_realised(graph, "fp32")
        content = whole(graph, self.exported.weights)
        on_typed(content)
        answers = self._plain_answers(content)
        rungs = self._climb(answers, "onnx-fp32", self._float32_floors())
        return self._proven(graph, content, None, rungs, ())

    def half(self, kind: HalfType, on_typed: Callable[[bytes], None]) -> Proven:
        """Cast the graph and prove both."""
        graph, weights = with_head(self.exported.graph, self.head), self.exported.weights
        plain = graph.SerializeToString()
        ranges = self._ranges(plain) if kind == "fp16" else None
        plain_answers = self._plain_answers(plain, weights)
        floors = self._half_floors(kind)
        self.tidy()
        notes = _check_ranges(graph, ranges.result()) if ranges is not None else ()
        typed = with_head(to_half(self.exported.graph, kind), self.head)
        check(typed, tuple(self.yardstick.inputs), tuple(self._outputs))
        check_realised(typed, kind)
        halves = half_weights(typed, weights, kind)
        cpu = _emulated(typed, halves, kind)
        content = whole(typed, halves)
        del halves
        self.tidy()
        on_typed(content)
        answers = self._answers(cpu or content)
        _check_carried(floors, kind)
        rungs = self._climb(plain_answers, "onnx-fp32", self._gained(floors, kind))
        name = f"onnx-{kind}{'-emulated' if cpu else ''}"
        rungs += self._climb(answers, name, [(floor, f"{kind} rounding of the original") for floor in floors])
        return self._proven(typed, content, cpu, rungs, notes)

    def _proven(
        self, graph: "ModelProto", content: bytes, cpu: bytes | None, rungs: tuple[Rung, ...], notes: tuple[str, ...]
    ) -> Proven:
        return Proven(graph, content, cpu, rungs, notes, self.exported.route, self.exported.simplifier)

    def _compare(self, session: OrtSession) -> tuple[str, float] | None:
        """Hold the float32 graph against what the original answers to inputs unlike the samples."""
        if self.yardstick.probes is None:
            return None
        sizes = self.yardstick.answers
        return differing(session, self._outputs, self.yardstick.probes, min(sizes), free=len(sizes) > 1)

    def tidy(self) -> None:
        """Free what the steps before left behind, where it is worth the moment that this takes."""
        if sum(array.nbytes for array in self.exported.weights.values()) > _MUCH:
            give_back_memory()

    @property
    def _outputs(self) -> list[str]:
        return [value.name for value in self.exported.graph.graph.output]

    def _plain_answers(self, graph: bytes, weights: Weights = MappingProxyType({})) -> Answers:
        """Ask the float32 graph, smallest batch first: the compiler is done with its memory before the largest."""
        return self.referee.answers(graph, self._outputs, sorted(self.yardstick.answers), weights, self._compare)

    def _answers(self, graph: bytes) -> Answers:
        """Ask the graph that ships, largest batch first: what it leaves in memory serves the others."""
        return self.referee.answers(graph, self._outputs, sorted(self.yardstick.answers, reverse=True))

    def _ranges(self, graph: bytes) -> "Future[dict[str, float]]":
        """Observe all samples, as few at once as the graph takes: each tensor of the graph stays in memory for them."""
        count = max(len(array) for array in self.yardstick.inputs.values())
        batch = self.recipe.batch
        return self.referee.ranges(graph, self.exported.weights, _within(count, batch), batch.min)

    def _climb(self, answers: Answers, name: str, floors: Floors) -> tuple[Rung, ...]:
        rungs = climb(answers, name, self._outputs, self.yardstick, floors)
        self.say(rungs[-1])
        return rungs

    def _float32_floors(self) -> Floors:
        """Return the floors of float32 from a half type that can carry the network: FP16, or BF16 for its range."""
        half = self._half_floors("fp16")
        if all(floor >= _LEAST_DB for floor in half):
            return self._gained(half, "fp16")
        return self._gained(self._half_floors("bf16"), "bf16")

    def _half_floors(self, kind: HalfType) -> list[float]:
        size = _within(_FLOOR_ROWS, self.recipe.batch)
        few = {name: rows(array, size) for name, array in self.yardstick.inputs.items()}
        exact = self.yardstick.answers.get(size) or [rows(output, size) for output in self.yardstick.reference]
        return noise_floor(self.exported.run, few, exact, kind)

    def _gained(self, half: list[float], kind: HalfType) -> Floors:
        words = f"{kind} rounding of the original, float32's bits gained, sums lost"
        return [(float32_floor(floor, kind, self.exported.graph), words) for floor in half]


def _emulated(typed: "ModelProto", weights: Weights, kind: HalfType) -> bytes | None:
    """ONNX Runtime's CPU kernels know FP16, and no BF16 convolution."""
    if kind == "fp16":
        return None
    from engineworks.export.emulate import emulate

    return whole(emulate(typed, kind), weights)


def _check_carried(floors: list[float], kind: HalfType) -> None:
    if not all(floor >= _LEAST_DB for floor in floors):
        raise ExportError(
            f"{kind} cannot carry this network: rounding every tensor to it keeps {min(floors):.1f} dB of its answers, "
            f"{_LEAST_DB:.0f} are the least that means anything. Use {'--bf16 or ' if kind == 'fp16' else ''}--fp32."
        )


def _check_ranges(graph: "ModelProto", ranges: dict[str, float]) -> tuple[str, ...]:
    """Refuse values that FP16 cannot hold, by layer; note those that come near its ends.

    Raises:
        ExportError: naming the first layer beyond, its module, and how far it goes.
    """
    where, beyond = modules(graph), beyond_fp16(ranges)
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
