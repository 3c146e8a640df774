"""From a module to a typed graph that is proven: every step's post-condition, and the figures of every rung."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.export.apart import Weights, part
from engineworks.export.clean import clean, modules
from engineworks.export.emitter import CannotTranslate
from engineworks.export.floors import within
from engineworks.export.head import Head
from engineworks.export.ladder import Calibrate, Ladder, Proven, check
from engineworks.export.layers import Layer
from engineworks.export.parity import Yardstick
from engineworks.export.pools import remove_empty_pools
from engineworks.export.probe import hold
from engineworks.export.recipe import Recipe
from engineworks.export.referee import Referee
from engineworks.export.reference import rounded_trace
from engineworks.export.samples import rows
from engineworks.export.simplify import simplify
from engineworks.export.taps import trace_taps
from engineworks.export.to_onnx import Exported, to_onnx
from engineworks.export.translate import translate
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch, Rung

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = npt.NDArray[Any]


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
    return {name: rows(array, within(2, batch)) for name, array in inputs.items()}


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
        made = translate(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
        held = ((name, tensor.detach()) for name, tensor in made.traced.named_parameters())
        known = {name: tensor.numpy() for name, tensor in held if tensor.dtype == torch.float32}
        run, taps = rounded_trace(made.traced), trace_taps(module, made)
        return Exported(made.graph, run, "fx translation", taps=taps), known
    except CannotTranslate as reason:
        if recipe.route == "fx":
            raise ExportError(
                f"--route fx: our translation stops at {reason}. --route auto takes the other."
            ) from reason
        exported = to_onnx(module, examples, outputs, batch=recipe.batch, opset=recipe.graph_opset)
        return replace(exported, route=f"{exported.route} (fx translation stops at {reason})"), {}


def prove(
    exported: Exported,
    recipe: Recipe,
    yardstick: Yardstick,
    on_typed: Callable[[bytes], None],
    say: Callable[[Rung], None],
    head: Head | None = None,
    calibrate: Calibrate | None = None,
    say_layers: Callable[[str, list[Layer]], None] = lambda name, layers: None,
) -> Proven:
    """Cast the graph as asked and compare every graph on the way with the original.

    Args:
        exported: the float32 graph and its program.
        recipe: the precision asked for.
        yardstick: what the original answers.
        on_typed: given the typed graph as soon as it stands, so that its engine can be compiled meanwhile.
        say: told the rung at the largest batch of each comparison.
        head: what is put before the graph's input, in float32 whatever the precision; None for nothing.
        calibrate: for ``int8``, makes a Q/DQ graph of the float32 one.
        say_layers: told each graph's name and its layers, where the recipe asks for them.

    Raises:
        ExportError: a weight or a value beyond FP16's range, or a layer in another precision than asked.
        ParityError: a graph that does not answer as the original does, or a layer of it where the recipe asks for them.
    """
    if recipe.layers and exported.taps is None:
        raise ExportError("--layers: an ONNX file has no PyTorch layers to be held against.")
    if head is not None:
        yardstick = _held_behind(exported, yardstick)
    with Referee(yardstick.inputs) as referee:
        ladder = Ladder(exported, recipe, yardstick, referee, say, head, say_layers)
        ladder.tidy()
        if recipe.precision == "int8":
            assert calibrate is not None
            return ladder.int8(calibrate, on_typed)
        return ladder.plain(on_typed) if recipe.precision == "fp32" else ladder.half(recipe.precision, on_typed)


def _held_behind(exported: Exported, yardstick: Yardstick) -> Yardstick:
    """Hold the probes, which are what stands behind a head, against the graph without it; they are then done with."""
    if yardstick.probes is not None:
        session = open_session(exported.graph.SerializeToString(), "cpu", weights=exported.weights)
        outputs, sizes = [value.name for value in exported.graph.graph.output], yardstick.answers
        hold(session, outputs, yardstick.probes, min(sizes), free=len(sizes) > 1)
        session.close()
    return replace(yardstick, probes=None)
