"""The rungs from the float32 graph to the typed one: what each graph answers, held to what it must reach."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.export.apart import Weights, whole, without_references
from engineworks.export.calibrate import Calibrated
from engineworks.export.floors import LEAST_INT8_DB, Floors, Needed, check_carried, within
from engineworks.export.fp16_range import check_ranges
from engineworks.export.half import HalfType, half_weights, to_half
from engineworks.export.head import Head, with_head
from engineworks.export.layers import Layer, first_wrong
from engineworks.export.looking import blame, look
from engineworks.export.memory import give_back_memory
from engineworks.export.parity import MARGIN_DB, Yardstick, climb
from engineworks.export.precision import check_realised
from engineworks.export.probe import differing
from engineworks.export.recipe import Recipe
from engineworks.export.referee import Answers, Referee
from engineworks.export.to_onnx import Exported
from engineworks.runtime.backend import OrtSession
from engineworks.runtime.errors import ExportError, ParityError
from engineworks.runtime.manifest import Rung
from engineworks.runtime.ort_session import Optimise

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
Seen = Callable[[], list[Layer]]
Calibrate = Callable[["ModelProto"], Calibrated]
_KEPT = 8  # rows of answers, for the report
_MUCH = 1 << 28  # bytes of weights: from here on memory is worth the moment that tidying takes


@dataclass(frozen=True)
class Proven:
    """A typed graph, the figures that hold it to the original, and what a reader should know of it.

    ``cpu`` is a graph for ONNX Runtime on the CPU where it has no kernels for the typed one, or none that are fast,
    else None; ``route`` and ``simplifier`` say how the graph came about, ``calibration`` how its scales did, ``layers``
    where each of its values stands beside the original's, where that was asked for; ``answers`` what it answers to the
    first samples.
    """

    graph: "ModelProto"
    content: bytes
    cpu: bytes | None
    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]
    route: str
    simplifier: str
    calibration: bytes | None = None
    layers: tuple[Layer, ...] = ()
    answers: tuple[Array, ...] = ()


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


@dataclass(frozen=True)
class Ladder:
    """One proof: the referee runs graphs while PyTorch finds the floors that their answers are held to."""

    exported: Exported
    recipe: Recipe
    yardstick: Yardstick
    referee: Referee
    say: Callable[[Rung], None]
    head: Head | None
    say_layers: Callable[[str, list[Layer]], None] = lambda name, layers: None

    def plain(self, on_typed: Callable[[bytes], None]) -> Proven:
        """Prove the float32 graph."""
        graph = with_head(self.exported.graph, self.head)
        check_realised(graph, "fp32")
        content = whole(graph, self.exported.weights)
        on_typed(content)
        answers = self._plain_answers(content)
        seen = self._seen(graph, self.exported.weights)
        rungs = self._climb(answers, "onnx-fp32", self.floors.float32(), seen)
        return self._proven(graph, content, None, rungs, (), self._layers("fp32", seen), answers)

    def half(self, kind: HalfType, on_typed: Callable[[bytes], None]) -> Proven:
        """Cast the graph and prove both."""
        graph, weights = with_head(self.exported.graph, self.head), self.exported.weights
        plain = graph.SerializeToString()
        ranges = self._ranges(plain) if kind == "fp16" else None
        plain_answers = self._plain_answers(plain, weights)
        floors = self.floors.half(kind)
        self.tidy()
        notes = check_ranges(graph, ranges.result()) if ranges is not None else ()
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
        check_carried(floors, kind)
        before = self._seen(graph, weights)
        rungs = self._climb(plain_answers, "onnx-fp32", self.floors.gained(floors, kind), before)
        self._layers("fp32", before)
        seen = self._seen(typed, weights, kind)
        name = f"onnx-{kind}{'-emulated' if cpu else ''}"
        words = f"{kind} rounding of the original"
        needed = {size: [(floor, words) for floor in each] for size, each in floors.items()}
        rungs += self._climb(answers, name, needed, seen)
        return self._proven(typed, content, cpu, rungs, notes, self._layers(kind, seen), answers)

    def int8(self, calibrate: Calibrate, on_typed: Callable[[bytes], None]) -> Proven:
        """Prove the float32 graph; quantise it; prove what came of that, and its twin for CPUs."""
        weights, rest = self.exported.weights, self.recipe.int8_rest
        plain = with_head(self.exported.graph, self.head)
        ranges = self._ranges(plain.SerializeToString()).result() if rest == "fp16" else {}
        plain_answers = self._plain_answers(plain.SerializeToString(), weights)
        before = self._seen(plain, weights)
        rungs = self._climb(plain_answers, "onnx-fp32", self.floors.float32(), before)
        self._layers("fp32", before)
        made = calibrate(_model(whole(self.exported.graph, weights)))
        notes = made.notes
        if rest == "fp16":
            both = {name: max(ranges.get(name, 0.0), made.ranges.get(name, 0.0)) for name in (*ranges, *made.ranges)}
            notes += check_ranges(plain, both)
        floors = self.floors.int8(with_head(made.model, self.head), self._outputs, self.referee)
        typed = with_head(to_half(made.model, "fp16") if rest == "fp16" else made.model, self.head)
        check(typed, tuple(self.yardstick.inputs), tuple(self._outputs))
        check_realised(typed, rest, made.layers)
        content = typed.SerializeToString()
        on_typed(content)
        seen = self._seen(typed, {}, "fp16" if rest == "fp16" else None, made.factors)
        answers = self._answers(content, "float")
        rungs += self._climb(answers, "onnx-int8", floors, seen)
        cpu, more, told = (None, (), ()) if made.twin is None else self._twin(with_head(made.twin, self.head))
        layers = self._layers("int8", seen)
        proven = self._proven(typed, content, cpu, (*rungs, *more), (*notes, *told), layers, answers)
        return replace(proven, calibration=made.record)

    def _twin(self, graph: "ModelProto") -> tuple[bytes | None, tuple[Rung, ...], tuple[str, ...]]:
        """Prove the graph for CPUs; where it answers too badly it is left away, and that is said."""
        content = graph.SerializeToString()
        floor = (LEAST_INT8_DB + MARGIN_DB, "the least that an int8 graph for CPUs must keep")
        needed = dict.fromkeys(self.yardstick.answers, [floor] * len(self._outputs))
        try:
            return content, self._climb(self._answers(content), "onnx-int8-cpu", needed), ()
        except ParityError as error:
            words = "no int8 graph for CPUs: the graph for GPUs runs there, in float and no faster than float32"
            return None, (), (f"{words} ({str(error).partition(';')[0]})",)

    def _proven(
        self,
        graph: "ModelProto",
        content: bytes,
        cpu: bytes | None,
        rungs: tuple[Rung, ...],
        notes: tuple[str, ...],
        layers: tuple[Layer, ...],
        answers: Answers,
    ) -> Proven:
        largest = answers.by_batch[max(answers.by_batch)].result()
        kept = tuple(array[:_KEPT] for array in largest if array.ndim == 2)
        route, simplifier = self.exported.route, self.exported.simplifier
        return Proven(graph, content, cpu, rungs, notes, route, simplifier, layers=layers, answers=kept)

    def _seen(
        self,
        graph: "ModelProto",
        weights: Weights,
        kind: HalfType | None = None,
        factors: Mapping[str, Array] = MappingProxyType({}),
    ) -> Seen:
        """Return what compares a graph's layers with the original's when it is called."""
        recipe = self.recipe

        def seen() -> list[Layer]:
            held = weights if kind is None or not weights else half_weights(graph, weights, kind)
            return look(self.exported, graph, held, self.yardstick.inputs, recipe.batch, kind, self.head, factors)

        return seen

    def _layers(self, name: str, seen: Seen) -> tuple[Layer, ...]:
        """Hold every layer of a graph against the original's, where that was asked for.

        Raises:
            ParityError: a layer is further from it than rounding explains, whatever the outputs say.
        """
        if not self.recipe.layers:
            return ()
        layers = seen()
        if not layers:
            raise ExportError(f"--layers: onnx-{name} has no value of floating point that PyTorch has too.")
        if first_wrong(layers):
            raise ParityError(f"onnx-{name}: its outputs agree, a layer does not.{blame(layers)} Nothing was written.")
        self.say_layers(name, layers)
        return tuple(layers)

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
    def floors(self) -> Floors:
        """What finds the decibels that each rung must reach."""
        return Floors(self.exported, self.yardstick, self.recipe.batch)

    @property
    def _outputs(self) -> list[str]:
        return [value.name for value in self.exported.graph.graph.output]

    def _plain_answers(self, graph: bytes, weights: Weights = MappingProxyType({})) -> Answers:
        """Ask the float32 graph, smallest batch first: the compiler is done with its memory before the largest."""
        return self.referee.answers(graph, self._outputs, sorted(self.yardstick.answers), weights, self._compare)

    def _answers(self, graph: bytes, optimise: Optimise = "all") -> Answers:
        """Ask the graph that ships, largest batch first: what it leaves in memory serves the others."""
        sizes = sorted(self.yardstick.answers, reverse=True)
        return self.referee.answers(graph, self._outputs, sizes, optimise=optimise)

    def _ranges(self, graph: bytes) -> "Future[dict[str, float]]":
        """Observe all samples, as few at once as the graph takes: each tensor of the graph stays in memory for them."""
        count = max(len(array) for array in self.yardstick.inputs.values())
        batch = self.recipe.batch
        return self.referee.ranges(graph, self.exported.weights, within(count, batch), batch.min)

    def _climb(self, answers: Answers, name: str, floors: Needed, seen: Seen = lambda: []) -> tuple[Rung, ...]:
        try:
            rungs = climb(answers, name, self._outputs, self.yardstick, floors)
        except ParityError as error:
            probes = self.yardstick.probes
            if probes is not None and (probes.mixed() or probes.blame()):
                raise  # the user's own line is told already
            raise ParityError(f"{error}{blame(seen())}") from error
        self.say(rungs[-1])
        return rungs


def _model(content: bytes) -> "ModelProto":
    from onnx import ModelProto

    model: ModelProto = ModelProto.FromString(content)
    return model


def _emulated(typed: "ModelProto", weights: Weights, kind: HalfType) -> bytes | None:
    """ONNX Runtime's CPU kernels know FP16, and no BF16 convolution."""
    if kind == "fp16":
        return None
    from engineworks.export.emulate import emulate

    return whole(emulate(typed, kind), weights)
