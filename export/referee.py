"""Run graphs in ONNX Runtime beside what PyTorch and the compiler do meanwhile: one after another, in one thread.

ONNX Runtime lets go of Python's lock while it runs, so a thread is all that this takes. A process of its own would
start its imports a tenth of a second earlier, and hold Python, NumPy and ONNX Runtime in memory twice.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.calibration import observe_ranges
from engineworks.export.apart import Weights
from engineworks.export.samples import rows
from engineworks.runtime.backend import OrtSession, open_session
from engineworks.runtime.ort_session import Optimise

Array = npt.NDArray[Any]
Found = tuple[str, float] | None
Check = Callable[[OrtSession], Found]
_MUCH = 1 << 28  # bytes of weights: beyond, memory is worth more than the speed of a few runs


@dataclass(frozen=True)
class Answers:
    """By batch size, what a graph answers, as soon as it has; and what the check that followed found."""

    by_batch: Mapping[int, Future[list[Array]]]
    checked: Future[Found]


class Referee:
    """A thread that runs graphs on the CPU, on the samples of one comparison, in the order of the calls.

    Leaving it with an error ends the run under way at its next node, and drops those that wait.
    """

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self._inputs = inputs
        self._pool = ThreadPoolExecutor(1, "referee")
        self._session: OrtSession | None = None
        self._stopped = False

    def __enter__(self) -> "Referee":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = error is not None
        session = self._session
        if session is not None and self._stopped:
            session.stop()
        self._pool.shutdown(cancel_futures=self._stopped)

    def ranges(self, graph: bytes, weights: Weights, count: int, at_once: int) -> Future[dict[str, float]]:
        """Observe the largest magnitude of every tensor on the first ``count`` samples, so many rows at once."""
        few = {name: rows(array, count) for name, array in self._inputs.items()}
        return self._pool.submit(observe_ranges, graph, few, at_once, weights)

    def answers(
        self,
        graph: bytes,
        outputs: Sequence[str],
        sizes: Sequence[int],
        weights: Weights = MappingProxyType({}),
        check: Check | None = None,
        optimise: Optimise = "all",
    ) -> Answers:
        """Run a graph at each batch size, its samples repeated or cut to it; an error comes with the first answer.

        Args:
            graph: a serialised ONNX model.
            outputs: the names of the outputs to give.
            sizes: the batch sizes, in the order in which they are run.
            weights: those that lie beside the graph.
            check: what else is asked of the session afterwards.
            optimise: as ``open_session`` takes it.
        """
        opened = self._pool.submit(self._open, graph, weights, optimise)
        answers = {size: self._pool.submit(self._run, opened, list(outputs), size) for size in sizes}
        checked = self._pool.submit(self._check, opened, check)
        self._pool.submit(self._close)
        return Answers(answers, checked)

    def _check(self, opened: Future[OrtSession], check: Check | None) -> Found:
        return None if check is None else check(opened.result())

    def _open(self, graph: bytes, weights: Weights, optimise: Optimise) -> OrtSession:
        lean = len(graph) + sum(array.nbytes for array in weights.values()) > _MUCH
        session = open_session(graph, "cpu", weights=weights, lean=lean, optimise=optimise)
        session.allow_stop()
        self._session = session
        if self._stopped:  # while it was being opened
            session.stop()
        return session

    def _run(self, opened: Future[OrtSession], outputs: list[str], size: int) -> list[Array]:
        inputs: dict[str, npt.NDArray[np.generic]] = {key: rows(array, size) for key, array in self._inputs.items()}
        results = opened.result().run(inputs, outputs)
        return [np.array(result, np.float32) for result in results]  # a copy: theirs keeps the session's whole memory

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
