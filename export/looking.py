"""Look into a graph that is being proven: its layers beside the original's, and where its error enters."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.export.apart import Weights
from engineworks.export.exposed import exposed_values
from engineworks.export.half import HalfType
from engineworks.export.head import Head, behind_head
from engineworks.export.layers import Layer, compare_layers, first_wrong, sentence
from engineworks.export.samples import rows
from engineworks.export.to_onnx import Exported
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
_ROWS = 2  # of each value, all channels and places are compared


def look(
    exported: Exported,
    graph: "ModelProto",
    weights: Weights,
    inputs: Mapping[str, Array],
    batch: Batch,
    kind: HalfType | None,
    head: Head | None,
    factors: Mapping[str, Array] = MappingProxyType({}),
) -> list[Layer]:
    """Compare a graph's values with the original's on a few rows; empty where the original is no PyTorch program.

    Args:
        exported: the original's taps.
        graph: one of the graphs made of it, its head before it.
        weights: those that lie beside it.
        inputs: the samples, as the graph takes them.
        batch: how many rows it takes.
        kind: the half type that it computes in, if any.
        head: what stands before it.
        factors: what its channels were equalised by.
    """
    if exported.taps is None:
        return []
    few = {name: rows(array, min(max(_ROWS, batch.min), batch.max)) for name, array in inputs.items()}
    given = head.behind(few) if head else few
    values = exposed_values(graph, few, weights, kind)
    return compare_layers(exported.taps, graph, values, list(given.values()), kind, behind_head(graph, head), factors)


def blame(layers: Sequence[Layer]) -> str:
    """Say where an error enters, as the end of a message."""
    if not layers:
        return ""
    wrong = first_wrong(layers)
    return f" {sentence(wrong)}" if wrong else " Each layer alone agrees with PyTorch's: it is what they add up to."


def as_json(layers: Sequence[Layer]) -> bytes:
    """Write the figures for a bundle: what is infinite (equal values) as null."""
    found = [
        {
            key: (round(value, 3) if math.isfinite(value) else None) if isinstance(value, float) else value
            for key, value in asdict(replace(layer, kept=None)).items()
            if key != "kept"
        }
        for layer in layers
    ]
    return (json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def kept(layers: Sequence[Layer]) -> dict[str, Array]:
    """Return a few numbers of every value, by its name: what ``check-model --layers`` is held to on other hosts."""
    return {layer.value: layer.kept for layer in layers if layer.kept is not None}
