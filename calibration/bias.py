"""Analytic bias correction: take back the mean that rounding the weights adds to each output channel.

With W the weights, Ŵ the rounded ones and m the mean of each input channel, a layer's outputs move by (Ŵ − W)·m on
average; the bias takes that back. It needs no second pass over the images (Nagel et al., Data-Free Quantization Through
Weight Equalization and Bias Correction, 2019, section 4.2, with means that were measured).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration.graph import Array, Floats, Graph
from engineworks.calibration.layers import Layer, read_bias, read_layer, read_weights
from engineworks.calibration.placement import Placement
from engineworks.calibration.weights import Int8Layer, Rest, round_layer
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto


def correct_biases(
    model: "ModelProto", placement: Placement, means: Mapping[str, Array], *, rest: Rest = "fp16"
) -> dict[str, Int8Layer]:
    """Round every int8 layer to nearest and correct its bias.

    Args:
        model: the float32 graph that ``placement`` was made for.
        placement: which layers are int8.
        means: tensor → the mean of each of its channels (axis 1), ``(C,)``, for every tensor that an int8 layer reads.
        rest: the type that the scales are stored in.

    Raises:
        ExportError: a tensor without means, or with another number of channels than its layer reads.

    Zeros that a convolution pads with count as any other value would: at borders the correction is a little large.
    """
    graph = Graph(model)
    found: dict[str, Int8Layer] = {}
    for name in placement.layers:
        layer = read_layer(graph, graph.by_name[name])
        assert layer is not None, name
        made = round_layer(graph, layer, rest)
        if layer.takes_bias:
            change = mean_change(read_weights(graph, layer), made.floats(layer), layer, _means_of(means, layer))
            made = replace(made, bias=(read_bias(graph, layer) - change).astype(np.float32))
        found[name] = made
    return found


def _means_of(means: Mapping[str, Array], layer: Layer) -> Array:
    if layer.data not in means:
        raise ExportError(f"tensor {layer.data}: no channel means were given. Observe what int8 layers read.")
    return np.asarray(means[layer.data], np.float64).ravel()


def mean_change(weights: Floats, rounded: Floats, layer: Layer, means: Array) -> Floats:
    """Return by how much rounding moves each output channel's mean, ``(output channels,)``.

    Args:
        weights: in the layer's own layout.
        rounded: the weights computed with, the same shape.
        layer: what they belong to.
        means: ``(C,)`` of the layer's input channels.

    Raises:
        ExportError: C is another number than the layer reads.
    """
    change = (rounded.astype(np.float64) - weights) * layer.alpha
    if layer.kind in {"Gemm", "MatMul"}:
        rows = np.moveaxis(change, layer.axis, 0)
    else:
        rows = change.reshape(*change.shape[:2], -1).sum(axis=2)
    inputs = rows.shape[1] if layer.kind != "ConvTranspose" else rows.shape[0] // layer.groups
    if means.size != inputs * (layer.groups if layer.kind != "MatMul" else 1):
        raise ExportError(f"tensor {layer.data}: got {means.size} channel means, {layer.name} reads others.")
    parts = means.reshape(layer.groups, inputs)
    if layer.kind == "ConvTranspose":  # its weights are (inputs, outputs of a group, …)
        return np.asarray(np.einsum("gio,gi->go", rows.reshape(layer.groups, inputs, -1), parts).ravel(), np.float32)
    return np.asarray(np.einsum("goi,gi->go", rows.reshape(layer.groups, -1, inputs), parts).ravel(), np.float32)
