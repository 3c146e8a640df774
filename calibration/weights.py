"""Weights as int8: symmetric, one scale for each output channel, zero point 0, on the grid that the rest can hold.

A scale that will be stored as FP16 is rounded to FP16 before any integer is chosen, so that the integers fit the scale
that the engine really has.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engineworks.calibration.graph import Array, Floats, Graph
from engineworks.calibration.layers import Layer, from_rows, read_bias, read_weights, to_rows
from engineworks.runtime.errors import ExportError

Rest = Literal["fp16", "fp32"]
LARGEST_INT8 = 127
_SMALLEST = {"fp16": 2.0**-24, "fp32": 2.0**-126}
_LARGEST = {"fp16": 65504.0, "fp32": 3e38}


@dataclass(frozen=True)
class Int8Layer:
    """A layer as it will be stored.

    ``values``: int8, in the weight tensor's own layout; ``scales``: float32 ``(channels,)``, positive; ``bias``:
    float32 ``(output channels,)``, what is added to the sums, or None where the graph's own stays.
    """

    values: Array
    scales: Floats
    bias: Floats | None = None

    def floats(self, layer: Layer) -> Floats:
        """Return the weights that the engine computes with."""
        shape = [1] * self.values.ndim
        shape[layer.axis] = -1
        return np.asarray(self.values * self.scales.reshape(shape), np.float32)


def round_scales(scales: Array, rest: Rest, *, up: bool = False) -> Floats:
    """Round scales to what the rest of the graph can hold; none becomes 0.

    Args:
        scales: any shape, 0 or more.
        rest: the type that will hold them.
        up: never to a smaller one, so that no range becomes shorter; else to the nearest.

    Raises:
        ExportError: a scale that is not finite, or too large for FP16.
    """
    wide = np.asarray(scales, np.float64)
    if not np.isfinite(wide).all() or (wide > _LARGEST[rest]).any():
        raise ExportError(f"a scale is {wide.max():.3g}: expected finite scales up to {_LARGEST[rest]:.3g} for {rest}.")
    kind = np.float16 if rest == "fp16" else np.float32
    rounded: Array = np.maximum(wide, _SMALLEST[rest]).astype(kind)
    short = up & (rounded.astype(np.float64) < wide)
    return np.asarray(np.where(short, np.nextafter(rounded, kind(np.inf)), rounded), np.float32)


def channel_scales(rows: Floats, rest: Rest) -> Floats:
    """Return for each row the scale that takes its largest magnitude to 127; 1 for a row of zeros.

    Args:
        rows: ``(channels, width)``, finite.
        rest: the float type that the scales will be stored in.
    """
    largest = np.abs(rows).max(axis=1, initial=0.0)
    return round_scales(np.where(largest > 0, largest / LARGEST_INT8, 1.0), rest, up=True)


def nearest(rows: Floats, scales: Floats) -> Array:
    """Round rows to the nearest step: int8 ``(channels, width)`` in [−127, 127]."""
    steps: Array = np.rint(rows / scales[:, None])
    return np.asarray(np.clip(steps, -LARGEST_INT8, LARGEST_INT8), np.int8)


def round_layer(graph: Graph, layer: Layer, rest: Rest) -> Int8Layer:
    """Quantise a layer's weights to nearest, its bias left as it is.

    Raises:
        ExportError: weights that are not finite.
    """
    weights = read_weights(graph, layer)
    if not np.isfinite(weights).all():
        raise ExportError(f"weight {layer.weight}: holds values that are not finite; it cannot be quantised.")
    rows = to_rows(weights, layer)
    scales = channel_scales(rows, rest)
    bias = read_bias(graph, layer) if layer.takes_bias and layer.bias else None
    return Int8Layer(from_rows(nearest(rows, scales), layer, weights.shape), scales, bias)
