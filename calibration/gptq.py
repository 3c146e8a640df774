"""Round weights with the second moments of a layer's own inputs: later weights make up for what earlier ones lost.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (2023), algorithm 1,
here for convolutions: the inputs are windows. The moments are taken about the mean, for the bias is fitted afterwards,
and shrunk to their diagonal, for they come from few images.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engineworks.calibration.graph import Array, Floats
from engineworks.calibration.weights import LARGEST_INT8, nearest

Doubles = npt.NDArray[np.float64]
SHRINK = 0.05  # of the way to the diagonal
_BLOCK = 64  # columns rounded one by one before the rest is told at once
WIDEST = 4608  # a window larger than this is rounded in parts: the moments are square in it
_WINDOWS = 8192


class Moments:
    """Second moments about the mean of a layer's input windows, ``(groups, width, width)``."""

    def __init__(self, groups: int, width: int) -> None:
        self.count = 0
        self.sums = np.zeros((groups, width))
        self.products = np.zeros((groups, width, width))
        self.pilot: Floats | None = None

    def add(self, windows: Floats) -> None:
        """Add ``(groups, windows, width)`` float32."""
        if self.pilot is None:
            self.pilot = windows.mean(axis=1, keepdims=True)
        centred = windows - self.pilot
        self.sums += centred.sum(axis=1)
        self.products += np.matmul(centred.transpose(0, 2, 1), centred)
        self.count += windows.shape[1]

    @property
    def covariance(self) -> Doubles:
        """The covariance, ``(groups, width, width)``."""
        means = self.sums / self.count
        return self.products / self.count - means[:, :, None] * means[:, None, :]


def windows(
    image: Floats, kernel: Sequence[int], pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    *, groups: int, most: int, seed: int,
) -> Floats:  # fmt: skip
    """Take some of the windows that a convolution looks through.

    Args:
        image: ``(C, H, W)`` float32; C channels.
        kernel: the window's height and width; with ``pads`` (top, left, bottom, right), ``strides``, ``dilations``.
        groups: into which the channels fall.
        most: how many windows at most, chosen by ``seed``.

    Returns:
        ``(groups, windows, C / groups · height · width)`` float32.
    """
    top, left, bottom, right = pads
    padded = np.pad(image, ((0, 0), (top, bottom), (left, right)))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    view = view[:, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    places = np.arange(view.shape[1] * view.shape[2])
    if len(places) > most:
        places = np.sort(np.random.default_rng(seed).choice(places, most, replace=False))
    taken = view[:, places // view.shape[2], places % view.shape[2]]
    parts = taken.reshape(groups, -1, len(places), *kernel)
    return np.ascontiguousarray(parts.transpose(0, 2, 1, 3, 4)).reshape(groups, len(places), -1)


def enough_windows(width: int) -> int:
    """Return how many windows tell the moments of so many inputs."""
    return max(_WINDOWS, 4 * width)


def round_rows(rows: Floats, scales: Floats, covariance: Doubles, *, shrink: float = SHRINK) -> Array:
    """Round a layer's weights so that its outputs change least.

    Args:
        rows: ``(channels, width)`` float32; the channels of group 0 first.
        scales: ``(channels,)``, positive.
        covariance: ``(groups, width, width)`` of the inputs.
        shrink: how far the covariance is shrunk towards its diagonal, 0 to 1.

    Returns:
        int8 ``(channels, width)`` in [−127, 127]. The error δᵀ covariance δ of no row is larger than that of rounding
        to nearest: where it would be, the row is rounded so.
    """
    groups, width = covariance.shape[:2]
    plain = nearest(rows, scales)
    steps = (rows / scales[:, None]).reshape(groups, -1, width).astype(np.float64)
    found = np.empty_like(steps)
    for start in range(0, width, WIDEST):
        part = slice(start, start + WIDEST)
        found[:, :, part] = _round_groups(steps[:, :, part], covariance[:, part, part], shrink)
    better = np.clip(found, -LARGEST_INT8, LARGEST_INT8)
    keep = output_error(better - steps, covariance) < output_error(plain.reshape(steps.shape) - steps, covariance)
    chosen = np.where(keep[:, :, None], better, plain.reshape(steps.shape))
    return np.asarray(chosen.reshape(rows.shape), np.int8)


def output_error(change: Doubles, covariance: Doubles) -> Doubles:
    """Return δᵀ covariance δ for changes δ ``(groups, channels, width)``: ``(groups, channels)``."""
    return np.asarray(np.sum(np.matmul(change, covariance) * change, axis=2))


def _round_groups(steps: Doubles, covariance: Doubles, shrink: float) -> Doubles:
    """Run the algorithm for all groups at once, the inputs of the largest variance first."""
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    order = np.argsort(-variance, axis=1, kind="stable")
    sorted_steps = np.take_along_axis(steps, order[:, None, :], axis=2)
    moments = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    rounded = _round_sorted(sorted_steps, _factor(moments, shrink))
    return np.take_along_axis(rounded, np.argsort(order, axis=1)[:, None, :], axis=2)


def _factor(moments: Doubles, shrink: float) -> Doubles:
    """Return the upper Cholesky factor of the inverse of the shrunk moments."""
    variance = np.diagonal(moments, axis1=1, axis2=2).copy()
    floor = np.maximum(variance.mean(axis=1, keepdims=True) * 1e-6, 1e-30)
    shrunk = (1 - shrink) * moments
    index = np.arange(moments.shape[1])
    shrunk[:, index, index] = np.maximum(variance, floor) + floor
    lower = np.linalg.cholesky(np.linalg.inv(shrunk))
    return np.asarray(lower.transpose(0, 2, 1))


def _round_sorted(steps: Doubles, factor: Doubles) -> Doubles:
    left, width = steps.copy(), steps.shape[2]
    rounded = np.empty_like(left)
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        lost = np.empty((*left.shape[:2], end - start))
        for column in range(start, end):
            now = left[:, :, column]
            rounded[:, :, column] = np.clip(np.rint(now), -LARGEST_INT8, LARGEST_INT8)
            lost[:, :, column - start] = (now - rounded[:, :, column]) / factor[:, column, column, None]
            beyond = factor[:, column, column:end]
            left[:, :, column:end] -= lost[:, :, column - start, None] * beyond[:, None, :]
        left[:, :, end:] -= np.matmul(lost, factor[:, start:end, end:])
    return rounded
