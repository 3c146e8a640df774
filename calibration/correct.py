"""Correct a network layer by layer: each layer is rounded and fitted on what the quantised layers before it hand on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engineworks.calibration import affine, gptq
from engineworks.calibration.graph import Array, Floats, Graph, attribute
from engineworks.calibration.layers import Layer, from_rows, read_bias, read_layer, read_weights, to_rows
from engineworks.calibration.placement import Placement
from engineworks.calibration.walk import Batches, Node, Values, Walk
from engineworks.calibration.weights import Int8Layer, Rest, channel_scales, nearest, round_scales

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OnLayer = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """How layers are corrected: the type beside int8, and whether weights are rounded with the inputs' moments."""

    rest: Rest = "fp16"
    rounding: bool = True


@dataclass(frozen=True)
class Corrected:
    """The layers as they will be stored, and each one's SQNR on the fitting images before and after its fit."""

    layers: Mapping[str, Int8Layer]
    sqnr: Mapping[str, tuple[float, float]]


def correct(
    model: "ModelProto",
    placement: Placement,
    scales: Mapping[str, float],
    batches: Batches,
    *,
    options: Options | None = None,
    on_layer: OnLayer = lambda done, total: None,
) -> Corrected:
    """Round and fit every int8 layer in the graph's order.

    Args:
        model: the float32 graph that ``placement`` was made for.
        placement: what is quantised.
        scales: tensor → step of its grid.
        batches: inputs, some images each; two values of a few tensors for all of them are held at a time.
        options: see ``Options``.
        on_layer: told after each layer how many of all are done.

    No layer's SQNR on these images is lower after its fit than it was before.
    """
    graph = Graph(model)
    chosen = options or Options()
    layers: dict[str, Int8Layer] = {}
    figures: dict[str, tuple[float, float]] = {}

    def step(node: "NodeProto", walk: Walk) -> None:
        layers[node.name], figures[node.name] = _correct_layer(node, walk, chosen)
        on_layer(len(layers), len(placement.layers))

    Walk(graph, placement, scales, batches).run(step)
    return Corrected(layers, figures)


def _correct_layer(node: "NodeProto", walk: Walk, options: Options) -> tuple[Int8Layer, tuple[float, float]]:
    graph = walk.graph
    layer = read_layer(graph, node)
    assert layer is not None, node.name
    inputs = walk.on_grid(layer.data)
    start = _rounded(graph, layer, inputs, options)
    wanted = [Node(graph, node).run({layer.data: values})[0] for values in walk.plain[layer.data]]
    sums = _sums(graph, layer, start, inputs)
    moments = affine.Moments()
    for first, second in zip(wanted, sums, strict=True):
        moments.add(_channels_second(first, layer), _channels_second(second, layer))
    bias = read_bias(graph, layer)
    before = affine.Correction(np.ones_like(bias), bias)
    after = _held(moments, before, affine.fit(moments, offsets=layer.takes_bias), start, options)
    walk.plain[layer.output] = wanted
    walk.quantised[layer.output] = [_apply(values, after, layer) for values in sums]
    scales = round_scales(start.scales * _stored_gain(after.gain, start), options.rest)
    made = Int8Layer(start.values, scales, after.offset if layer.takes_bias else None)
    return made, (_sqnr(moments, before), _sqnr(moments, after))


def _rounded(graph: Graph, layer: Layer, inputs: Values, options: Options) -> Int8Layer:
    weights = read_weights(graph, layer)
    rows = to_rows(weights, layer)
    scales = channel_scales(rows, options.rest)
    moments = _moments(graph, layer, weights, inputs) if options.rounding else None
    if moments is None:
        steps = nearest(rows, scales)
    else:
        shrink = max(gptq.SHRINK, rows.shape[1] / (rows.shape[1] + moments.count))
        steps = gptq.round_rows(rows, scales, moments.covariance, shrink=shrink)
    return Int8Layer(from_rows(steps, layer, weights.shape), scales)


def _moments(graph: Graph, layer: Layer, weights: Floats, inputs: Values) -> gptq.Moments | None:
    """Return the moments of what each weight is multiplied with; None for a layer that is no sum over windows.

    None too for a product of very many inputs: an image is one sample of it, so few leave nothing but the diagonal, and
    the moments would fill the memory (VGG's 25,088 inputs: 5 GB).
    """
    if layer.kind == "ConvTranspose" or (layer.kind == "Conv" and weights.ndim != 4):
        return None
    width = weights.size // weights.shape[layer.axis]
    if layer.kind != "Conv" and width > gptq.WIDEST:
        return None
    found = gptq.Moments(layer.groups, width)
    images = sum(len(values) for values in inputs)
    most = -(-gptq.enough_windows(width) // images)
    for number, values in enumerate(inputs):
        if layer.kind != "Conv":
            found.add(values.reshape(1, -1, values.shape[-1]))
            continue
        for index, image in enumerate(values):
            found.add(_windows(graph, layer, weights, image, most, number * 1000 + index))
    return found


def _windows(graph: Graph, layer: Layer, weights: Floats, image: Floats, most: int, seed: int) -> Floats:
    node = graph.by_name[layer.name]
    return gptq.windows(
        image,
        weights.shape[2:],
        _explicit_pads(node, image.shape[1:], weights.shape[2:]),
        attribute(node, "strides", [1, 1]),
        attribute(node, "dilations", [1, 1]),
        groups=layer.groups,
        most=most,
        seed=seed,
    )


def _explicit_pads(node: "NodeProto", size: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    mode = attribute(node, "auto_pad", b"NOTSET")
    if mode not in {b"SAME_UPPER", b"SAME_LOWER"}:
        return list(attribute(node, "pads", [0, 0, 0, 0]))
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    whole = [
        max((-(-length // stride) - 1) * stride + (window - 1) * step + 1 - length, 0)
        for length, window, stride, step in zip(size, kernel, strides, dilations, strict=True)
    ]
    first = [(total + (mode == b"SAME_LOWER")) // 2 for total in whole]
    return [*first, *(total - one for total, one in zip(whole, first, strict=True))]


def _sums(graph: Graph, layer: Layer, start: Int8Layer, inputs: Values) -> Values:
    """Compute a layer with int8 weights and no bias."""
    node = graph.by_name[layer.name]
    replaced: dict[int, Array] = {1: start.floats(layer)}
    if layer.takes_bias:
        replaced[2] = np.zeros_like(read_bias(graph, layer))
    runner = Node(graph, node, replaced)
    return [runner.run({layer.data: values})[0] for values in inputs]


def _channels_second(values: Floats, layer: Layer) -> Floats:
    """Lay a layer's outputs out with the channels as axis 1, as convolutions have them."""
    return values if layer.kind in {"Conv", "ConvTranspose", "Gemm"} else np.moveaxis(values, -1, 1)


def _stored_gain(gain: Floats, start: Int8Layer) -> Floats:
    """Return the gains that the weight scales can take up: none where groups share them."""
    return gain if len(gain) == len(start.scales) else np.ones_like(start.scales)


def _held(
    moments: affine.Moments, before: affine.Correction, found: affine.Correction, start: Int8Layer, options: Options
) -> affine.Correction:
    """Put the gains on the grid of the scales, and keep a channel as it was where the fit does not help it."""
    if len(found.gain) != len(start.scales):
        found = affine.Correction(np.ones_like(found.gain), found.offset)
    else:
        gain = round_scales(start.scales * found.gain, options.rest) / start.scales
        found = affine.Correction(gain, found.offset)
    if found.offset.any():
        wanted, computed = moments.means
        found = affine.Correction(found.gain, (wanted - found.gain * computed).astype(np.float32))
    better = affine.error(moments, found) < affine.error(moments, before)
    return affine.Correction(np.where(better, found.gain, before.gain), np.where(better, found.offset, before.offset))


def _apply(values: Floats, correction: affine.Correction, layer: Layer) -> Floats:
    shape = [1] * values.ndim
    shape[-1 if layer.kind == "MatMul" else 1] = -1
    values *= correction.gain.reshape(shape)
    values += correction.offset.reshape(shape)
    return values


def _sqnr(moments: affine.Moments, correction: affine.Correction) -> float:
    wanted, _ = moments.means
    signal = float((moments.spread[2] + wanted**2).sum())
    noise = float(affine.error(moments, correction).sum())
    if noise == 0 or signal == 0:
        return float("inf") if noise == 0 else float("-inf")
    return float(10 * np.log10(signal / noise))
