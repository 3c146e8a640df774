"""What the tensors of a network hold on given images, in one pass and in memory that does not grow with their number.

ONNX Runtime runs the float32 graph on the CPU, one image at a time, with the wanted tensors alone exposed: where these
stand after a ReLU, Conv and ReLU stay one kernel. Everything kept is a whole number, a minimum or a maximum, so that
the result is equal bit for bit for any order of the images and any batches they come in.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from math import gcd, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.calibration.histogram import Histogram
from engineworks.calibration.prefetch import prefetch
from engineworks.calibration.sums import ExactSums
from engineworks.runtime.errors import ExportError, InputError

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
OnProgress = Callable[[int, "int | None", "float | None"], None]
EVERY = 8
_SMALL = 1 << 15  # a row of fewer elements is counted whole: sampling it would save nothing
_MOST = 4  # threads that count; more wait for memory
_ROOM = 2.0**100  # magnitudes above: planes are summed in float64, for float32 could overflow


@dataclass(eq=False)
class TensorStatistics:
    """What one tensor held.

    Attributes:
        minimum: smallest value, over all elements.
        maximum: largest value, over all elements.
        elements: how many there were.
        histogram: of the magnitudes, all elements or a sample of them.
        sums: per channel (axis 1; one channel where there is no such axis), over all elements. Each image's plane is
            summed in float32, pairwise; the images' sums are added exactly.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    elements: int = 0
    histogram: Histogram = field(default_factory=Histogram)
    sums: ExactSums = field(default_factory=lambda: ExactSums.of(0))

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """The mean of each channel, ``(C,)`` float64."""
        sums: npt.NDArray[np.float64] = self.sums.values
        return sums * (len(sums) / self.elements)

    def merge(self, other: "TensorStatistics") -> "TensorStatistics":
        """Return what one pass over both parts' images would have found."""
        return TensorStatistics(
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.elements + other.elements,
            self.histogram.merge(other.histogram),
            self.sums.merge(other.sums),
        )

    def add(self, row: Floats, every: int) -> None:
        """Add the tensor of one image, ``(1, C, ...)`` float32, C-contiguous.

        Raises:
            ValueError: the row holds NaN or an infinity.
        """
        low, high = float(row.min()), float(row.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("NaN" if np.isnan(row).any() else "an infinity")
        channels = row.shape[1] if row.ndim > 1 else 1
        if not self.elements:
            self.sums = ExactSums.of(channels)
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.elements += row.size
        exact = np.float32 if max(-low, high) < _ROOM else np.float64
        self.sums.add(row.reshape(channels, -1).sum(axis=1, dtype=exact))
        sample = row.reshape(-1)[:: _stride(row.shape, every)]
        self.histogram.reach(max(-low, high))
        self.histogram.add(np.abs(sample) if low < 0 else np.ascontiguousarray(sample))


@dataclass(frozen=True, eq=False)
class Statistics:
    """What ``observe`` found: tensor name → statistics, in the order asked for, over so many images.

    ``every`` says what the histograms sample: 1 is every element.
    """

    tensors: Mapping[str, TensorStatistics]
    images: int
    every: int

    def merge(self, other: "Statistics") -> "Statistics":
        """Return what one pass over both parts' images would have found.

        Raises:
            ValueError: the parts are of other tensors, or sampled otherwise.
        """
        if list(self.tensors) != list(other.tensors) or self.every != other.every:
            raise ValueError("statistics of other tensors or of another sampling cannot be merged.")
        tensors = {name: tensor.merge(other.tensors[name]) for name, tensor in self.tensors.items()}
        return Statistics(tensors, self.images + other.images, self.every)

    @property
    def ranges(self) -> dict[str, float]:
        """Tensor name → largest magnitude, as ``beyond_fp16`` takes it."""
        return {name: tensor.largest for name, tensor in self.tensors.items()}


def observe(
    model: "ModelProto | bytes",
    tensors: Sequence[str],
    inputs: Iterable[Mapping[str, Array]],
    *,
    every: int = EVERY,
    on_progress: OnProgress | None = None,
    total: int | None = None,
) -> Statistics:
    """Run the images through the graph once and collect what the tensors hold.

    Args:
        model: a float32 graph.
        tensors: names of float32 tensors of it: inputs, or outputs of nodes.
        inputs: input name → array, one batch of any size after the other; read in another thread, a few ahead.
        every: about each how many-th element enters the histogram; 1 for all. Minimum, maximum and means are always
            over all. The stride is the next number that shares no factor with a plane's size, so that no column of a
            picture is preferred; small tensors are counted whole.
        on_progress: called after each image with the number done, ``total`` (by default ``len(inputs)``, None where it
            has no length) and the seconds left, None while unknown.
        total: the number of images, for ``on_progress`` alone.

    Raises:
        ExportError: the graph has no such tensor, it is not float32, or holds NaN or an infinity: named, with the
            number of the image.
        InputError: there is no image, or an array does not fit the graph.
        ValueError: ``every`` is less than 1.
    """
    if every < 1:
        raise ValueError(f"every: expected 1 or more, got {every}.")
    run = expose(model, tensors)
    found = {name: TensorStatistics() for name in tensors}
    clock = _Clock(on_progress, len(inputs) if total is None and isinstance(inputs, Sized) else total)
    with closing(prefetch(_rows(inputs))) as ahead, ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST)) as pool:
        for row in ahead:
            values = run(row)
            list(pool.map(lambda name, value: _add(found[name], name, value, every, clock.done), tensors, values))
            clock.tick()
    if not clock.done:
        raise InputError("calibration: expected at least one image, got none.")
    return Statistics(found, clock.done, every)


def _add(found: TensorStatistics, name: str, value: Array, every: int, image: int) -> None:
    if value.dtype != np.float32:
        raise ExportError(f"tensor {name!r}: expected float32, got {value.dtype}. Observe the float32 graph.")
    if not value.size:
        raise ExportError(f"tensor {name!r}: expected elements, got shape {value.shape}.")
    try:
        found.add(np.ascontiguousarray(value, np.float32), every)
    except ValueError as error:
        raise ExportError(
            f"tensor {name!r}: expected finite values, got {error} on image {image}. Look for an input that is not "
            "finite, or for weights that overflow."
        ) from error


def _rows(inputs: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    """Take batches apart: the same image always runs alone, whatever batch it came in.

    A runtime may sum in another order for another batch size; alone, a row's bits are its own.
    """
    for batch in inputs:
        sizes = {array.shape[0] if array.ndim else 0 for array in batch.values()}
        if len(sizes) != 1 or 0 in sizes:
            shapes = {name: array.shape for name, array in batch.items()}
            raise InputError(f"calibration: expected inputs of one batch size of 1 or more, got {shapes}.")
        for index in range(sizes.pop()):
            yield {name: np.ascontiguousarray(array[index : index + 1]) for name, array in batch.items()}


def _stride(shape: tuple[int, ...], every: int) -> int:
    plane = prod(shape[2:]) if len(shape) > 2 else 1
    if prod(shape) < _SMALL:
        return 1
    return next(stride for stride in range(every, every + plane + 1) if stride == 1 or gcd(stride, plane) == 1)


def expose(model: "ModelProto | bytes", tensors: Sequence[str]) -> Callable[[Mapping[str, Array]], list[Array]]:
    """Return a function that runs the graph on one image and gives these tensors; what lies behind them is cut off.

    Args:
        model: a float32 graph; left as it is.
        tensors: names of tensors of it, each once.

    Returns:
        a function from input name → array with a batch axis of 1 to the tensors' arrays, in the order of the names.
        It raises InputError where the arrays do not fit the graph.

    Raises:
        ExportError: the graph has no such tensor.
    """
    content, batch = _cut(model, tensors)
    return _runner(content, list(tensors), batch)


def _cut(model: "ModelProto | bytes", tensors: Sequence[str]) -> tuple[bytes, int]:
    """Return the graph with these outputs, serialised, and its batch size; no second copy outlives this function."""
    from onnx import ModelProto, ValueInfoProto

    graph = ModelProto.FromString(model if isinstance(model, bytes) else model.SerializeToString())
    known = {name for node in graph.graph.node for name in node.output} | {value.name for value in graph.graph.input}
    missing = [name for name in tensors if name not in known or not name]
    if missing or not tensors or len(set(tensors)) < len(tensors):
        what = f"no tensor {missing[0]!r}" if missing else "a list of tensors that is empty or names one twice"
        raise ExportError(f"calibration: expected tensors of the graph, got {what}.")
    del graph.graph.output[:]
    graph.graph.output.extend(ValueInfoProto(name=name) for name in tensors)  # ONNX Runtime infers their types
    return graph.SerializeToString(), _fixed_batch(graph)


def _runner(graph: bytes, tensors: list[str], batch: int) -> Callable[[Mapping[str, Array]], list[Array]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    known = ort.capi.onnxruntime_pybind11_state
    refused: Any = (known.InvalidArgument, known.RuntimeException, known.Fail, ValueError)

    def run(row: Mapping[str, Array]) -> list[Array]:
        try:
            values: list[Array] = session.run(
                tensors, {name: np.repeat(array, batch, 0) for name, array in row.items()}
            )
        except refused as error:
            words = " ".join(str(error).split())
            raise InputError(f"calibration: the network cannot take this image: {words}") from error
        return values if batch == 1 else [value[:1] for value in values]

    return run


def _fixed_batch(graph: "ModelProto") -> int:
    """Return the batch size that the graph insists on, else 1; a lone image is repeated to it."""
    axes = [value.type.tensor_type.shape.dim for value in graph.graph.input]
    return max((int(dims[0].dim_value) for dims in axes if dims), default=1) or 1


class _Clock:
    """Counts images and estimates the seconds left from the rate since the first."""

    def __init__(self, on_progress: OnProgress | None, total: int | None) -> None:
        self.done = 0
        self._tell, self._total, self._first = on_progress, total, 0.0

    def tick(self) -> None:
        """Count one image and tell."""
        self.done += 1
        now = time.monotonic()
        if self.done == 1:
            self._first = now
        if self._tell is None:
            return
        left = None
        if self._total is not None and self.done > 1:
            left = max(self._total - self.done, 0) * (now - self._first) / (self.done - 1)
        self._tell(self.done, self._total, left)
