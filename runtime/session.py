"""A bundle that runs: what ``load`` returns.

``infer`` takes prepared arrays and checks them; ``classify`` takes pictures and prepares them as the bundle says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from engineworks.runtime.backend import Backend, Device, OrtSession, open_session
from engineworks.runtime.bundle import GRAPH, Bundle, open_bundle
from engineworks.runtime.compare import order
from engineworks.runtime.errors import BackendError, BundleError, InputError
from engineworks.runtime.manifest import Manifest, Scores, Tensor
from engineworks.runtime.preprocessing import Pictures, Preprocessing, one_by_one, preprocess

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """One class of one picture: its label, its index, and its share of the probability, in [0, 1]."""

    label: str
    index: int
    probability: float


class Session:
    """A loaded bundle. Close it, or use it in a ``with`` block; ``infer`` may be called from several threads."""

    def __init__(self, bundle: Bundle, session: OrtSession) -> None:
        self._bundle = bundle
        self._session: OrtSession | None = session
        self._backend = session.backend

    def __repr__(self) -> str:
        return f"<Session {self.manifest.summary} on {self._backend.name}>"

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """Everything that is known about the bundle."""
        return self._bundle.manifest

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every input; a named axis is free."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every output."""
        return self.manifest.outputs

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, by index; empty where the bundle has none."""
        return self.manifest.labels

    @property
    def backend(self) -> Backend:
        """What runs the graph here, why, and what was passed over."""
        return self._backend

    @overload
    def infer(self, inputs: Array) -> Array: ...
    @overload
    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...
    def infer(self, inputs: Array | Mapping[str, Array]) -> Array | dict[str, Array]:
        """Run the network on prepared arrays.

        Args:
            inputs: an array for a network of one input, or name → array; as in ``inputs``, with a batch axis.

        Returns:
            The output as an array if an array was given and there is one output, else name → array.

        Raises:
            InputError: a name, dtype, shape or batch that does not fit; the message says what would.
            BackendError: the session is closed, or the backend failed.
        """
        session = self._session  # another thread may close it meanwhile
        if session is None:
            raise BackendError(f"bundle {self.manifest.name}: this session is closed. Load the bundle again.")
        arrays = self._named(inputs)
        self._check(arrays)
        names = [output.name for output in self.outputs]
        results = dict(zip(names, session.run(arrays, names), strict=True))
        return results[names[0]] if not isinstance(inputs, Mapping) and len(names) == 1 else results

    def classify(self, pictures: Pictures, k: int = 5) -> list[list[Prediction]]:
        """Name what is in pictures.

        Args:
            pictures: paths, image bytes, Pillow images or uint8 arrays, one or many; see ``preprocess``. More than
                the bundle's largest batch are run in several.
            k: how many classes to return for each, best first; at most as many as there are.

        Returns:
            For each picture, its k best classes.

        Raises:
            InputError: not a picture, or ``k`` < 1.
            BackendError: the network answers NaN or infinity.
            BundleError: the bundle has no preprocessing, or its network is no classifier.
        """
        recipe = self._preprocessing()
        if k < 1:
            raise InputError(f"classify: expected k of 1 or more, got {k}.")
        each, answers = iter(one_by_one(pictures, recipe)), list[list[Prediction]]()
        while some := [*islice(each, self.manifest.batch.max)]:
            answers += [self._predictions(row, k) for row in self._scores(preprocess(some, recipe))]
        if not answers:
            raise InputError("classify: expected at least one picture, got none.")
        return answers

    def preprocess(self, pictures: Pictures) -> Array:
        """Prepare pictures as the bundle says, for ``infer``; see ``engineworks.runtime.preprocess``.

        Returns:
            ``(N, C, H, W)`` float32; N pictures, C channels. ``(N, H, W, C)`` uint8 where the graph normalises.
        """
        return preprocess(pictures, self._preprocessing())

    def close(self) -> None:
        """Free the backend; calling it again does nothing."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _scores(self, batch: Array) -> Array:
        """Run pictures, padded up to the smallest batch that the bundle was checked for."""
        missing = self.manifest.batch.min - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing > 0 else batch
        return self.infer(padded)[: len(batch)]

    def _predictions(self, row: Array, k: int) -> list[Prediction]:
        if not np.isfinite(row).all():
            raise BackendError(f"bundle {self.manifest.name}: the network answered NaN or infinity to this picture.")
        probabilities = softmax(row[None], self.manifest.scores)[0]
        best = order(row[None], self.manifest.scores)[0, :k]
        return [Prediction(self._label(int(index)), int(index), float(probabilities[index])) for index in best]

    def _label(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else str(index)

    def _preprocessing(self) -> Preprocessing:
        content = self.manifest.preprocessing
        if content is None:
            raise BundleError(
                f"bundle {self.manifest.name}: says nothing of preprocessing. Prepare arrays, call infer()."
            )
        if len(self.inputs) != 1 or len(self.outputs) != 1 or len(self.outputs[0].shape) != 2:
            raise BundleError(
                f"bundle {self.manifest.name}: is no classifier of pictures (one input, one (N, K) output)."
            )
        return Preprocessing.from_json(content)

    def _named(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        expected = [tensor.name for tensor in self.inputs]
        if not isinstance(inputs, Mapping):
            if len(expected) != 1:
                raise InputError(f"infer: expected a dict with {', '.join(expected)}, got one array.")
            return {expected[0]: inputs}
        if set(inputs) != set(expected):
            raise InputError(
                f"infer: expected the inputs {', '.join(expected)}, got {', '.join(map(str, inputs)) or 'none'}."
            )
        return dict(inputs)

    def _check(self, arrays: dict[str, Array]) -> None:
        for tensor in self.inputs:
            _check_array(tensor, arrays[tensor.name])
        self._check_batch(arrays)

    def _check_batch(self, arrays: dict[str, Array]) -> None:
        sizes = {t.name: arrays[t.name].shape[0] for t in self.inputs if t.shape and isinstance(t.shape[0], str)}
        if len(set(sizes.values())) > 1:
            raise InputError(f"infer: expected one batch size for all inputs, got {sizes}.")
        batch = self.manifest.batch
        for name, size in sizes.items():
            if not batch.min <= size <= batch.max:
                mend = "Split it" if size > batch.max else "Repeat rows"
                raise InputError(
                    f"input {name!r}: expected a batch of {batch.min} to {batch.max}, got {size}. "
                    f"{mend}, or re-export with --batch MIN:OPT:MAX."
                )


def load(path: Path | str, *, device: Device = "auto", strict: bool = False, threads: int = 0) -> Session:
    """Open a bundle and make it ready to run.

    Args:
        path: the folder that export-model wrote.
        device: ``auto``, ``cuda`` or ``cpu``.
        strict: refuse to fall back to the CPU where a GPU is present.
        threads: CPU threads for one run; 0 lets ONNX Runtime choose.

    Returns:
        A ``Session``; close it, or use it in a ``with`` block.

    Raises:
        BundleError: not a bundle, damaged, edited, or of a later schema. Every file's digest is checked first.
        BackendError: nothing can run it here, or the device asked for does not work.
    """
    bundle = open_bundle(path)
    cpu = str(bundle.manifest.graph.get("cpu", GRAPH))  # stands for the typed graph where the CPU lacks its kernels
    graphs = _checked(bundle, {GRAPH, cpu})
    session = open_session(graphs[GRAPH], device, strict=strict, threads=threads, cpu_graph=graphs[cpu])
    return Session(bundle, session)


def _checked(bundle: Bundle, wanted: set[str]) -> dict[str, bytes]:
    """Read and check every file of the bundle once; return those wanted."""
    files = dict.fromkeys((*sorted(wanted), *bundle.manifest.files))  # what is wanted and not there is told by name
    contents = ((name, bundle.read(name)) for name in files)
    return {name: content for name, content in contents if name in wanted}


def softmax(scores_of: Array, scores: Scores = "logits") -> npt.NDArray[np.float64]:
    """Turn the scores of a classifier into probabilities, row by row.

    Args:
        scores_of: ``(N, K)``, any real dtype; N pictures, K classes.
        scores: ``logits``, or ``distances`` whose negatives are then taken (LeCun et al. 1998, equation 9).

    Returns:
        ``(N, K)`` float64 in [0, 1]; each row sums to 1.

    Raises:
        InputError: ``scores_of`` is not two-dimensional.
    """
    if scores_of.ndim != 2:
        raise InputError(f"softmax: expected (N, K), got {scores_of.shape}. Add a batch axis: x[None].")
    values = np.asarray(scores_of, np.float64) * (-1 if scores == "distances" else 1)
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def _check_array(tensor: Tensor, array: Array) -> None:
    wanted = f"{tensor.dtype} ({', '.join('N' if isinstance(axis, str) else str(axis) for axis in tensor.shape)})"
    if not isinstance(array, np.ndarray):
        raise InputError(f"input {tensor.name!r}: expected a numpy array {wanted}, got {type(array).__name__}.")
    fits = len(array.shape) == len(tensor.shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.shape, array.shape, strict=True)
    )
    if fits and array.dtype == tensor.dtype:
        return
    raise InputError(
        f"input {tensor.name!r}: expected {wanted}, got {array.dtype} {array.shape}. {_mend(tensor, array, fits)}"
    )


def _mend(tensor: Tensor, array: Array, fits: bool) -> str:
    if array.dtype == np.uint8 and tensor.dtype != "uint8":
        return "Pass pictures to classify(), or through preprocess() first."
    if fits:
        return f"Convert it: x.astype('{tensor.dtype}')."
    if len(array.shape) == len(tensor.shape) - 1:
        return "Add a batch axis: x[None]."
    channels_last = len(array.shape) == len(tensor.shape) == 4 and array.shape[3] == tensor.shape[1]
    return "Put the channels first: x.transpose(0, 3, 1, 2)." if channels_last else "Resize it to that shape."
