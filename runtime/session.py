"""A bundle that runs: what ``load`` returns.

``infer`` takes prepared arrays and checks them; ``classify`` takes pictures and prepares them as the bundle says;
``submit`` and ``ainfer`` let many callers share batches. A network is loaded once for each process: not before a fork.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import islice
from time import perf_counter
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from engineworks.runtime.arrays import Give, SupportsDLPack, giver, kept
from engineworks.runtime.backend import Backend
from engineworks.runtime.batcher import Batcher
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.checks import Contract, checked, contract, fitting, named, plain_rows
from engineworks.runtime.classify import Prediction, predictions
from engineworks.runtime.errors import BackendError, BundleError, DeadlineError, InputError
from engineworks.runtime.inflight import InFlight, Runner
from engineworks.runtime.manifest import Manifest, Tensor
from engineworks.runtime.on_device import as_tensor, laid_out, lie_on, outline
from engineworks.runtime.preprocessing import Pictures, Preprocessing, one_by_one, preprocess
from engineworks.runtime.rows import padded, rows_of, stacked
from engineworks.runtime.stats import Stats, Tally

Array = npt.NDArray[Any]
_QUEUE = 1024


class Session:
    """A loaded bundle. Close it, or use it in a ``with`` block; every method may be called from several threads."""

    def __init__(
        self, bundle: Bundle, runner: Runner, *, rules: Contract | None = None, contexts: int = 1, queue: int = _QUEUE
    ) -> None:
        m = bundle.manifest
        self._bundle = bundle
        self._backend = runner.backend
        self._rules = rules or contract(m.inputs, m.batch)
        self._names = [output.name for output in m.outputs]
        self._tally = Tally()
        self._inflight = InFlight(runner, self._names, m.name, self._tally)
        self._open = True
        free = all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in (*m.inputs, *m.outputs))
        self._batcher = Batcher(
            self._inflight.run,
            largest=self._rules.largest,
            joins=free,
            capacity=queue,
            workers=contexts,
            tally=self._tally,
        )
        weakref.finalize(self, _shut, self._batcher, self._inflight)  # for who forgets to close, and at the exit

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
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes an input.

        Raises:
            BundleError: the bundle has no preprocessing, or its network is no classifier.
        """
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

    @property
    def backend(self) -> Backend:
        """What runs the graph here, why, and what was passed over."""
        return self._backend

    @overload
    def infer(self, inputs: Array) -> Array: ...
    @overload
    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...
    @overload
    def infer(self, inputs: Mapping[str, SupportsDLPack]) -> dict[str, Any]: ...
    @overload
    def infer(self, inputs: SupportsDLPack) -> Any: ...
    def infer(self, inputs: Any) -> Any:
        """Run the network on prepared arrays.

        Args:
            inputs: an array for a network of one input, or name → array; as in ``inputs``, with a batch axis. Numpy
                arrays, torch tensors, or whatever has ``__dlpack__``. Nothing is converted but the memory layout: an
                array that is not contiguous is copied once; one on the session's own GPU is read where it lies, once
                its stream has written it, unless NaN is refused. NaN and infinity are passed on, unless the bundle was
                loaded with ``nan="refuse"``.

        Returns:
            The output as an array if an array was given and there is one output, else name → array. Torch tensors on
            the same device where torch tensors were given, else numpy arrays; the memory is the caller's.

        Raises:
            InputError: a name, dtype, shape or batch that does not fit; the message says what would.
            BackendError: the session is closed or was loaded before a fork, or the backend failed.
        """
        if (rows := plain_rows(self._rules, inputs)) and self._open and len(self._names) == 1:
            return self._inflight.run({self._rules.specs[0].tensor.name: inputs}, rows)[0]
        given, alone = self._given(inputs), not isinstance(inputs, Mapping)
        if self._rules.nan == "pass" and lie_on(given, self._inflight.device):
            return self._infer_there(given, alone)
        with _memory():
            arrays, rows = checked(self._rules, given)
        give = giver(given.values())
        results = self._inflight.run(arrays, rows)
        return _shaped(self._names, give, alone, results)

    def infer_batch(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Run any number of rows, the largest batch at a time.

        Args:
            rows: an array ``(N, …)`` of any N, a mapping of such arrays, or any iterable of rows, each an array
                without a batch axis, or name → array where there are several inputs. It is read as it is needed.

        Yields:
            For each row, in order, its output without a batch axis; as ``infer`` gives it. Where fewer rows are left
            than the bundle's smallest batch, the last is repeated and the answers to that dropped; ``stats`` counts.

        Raises:
            InputError: a row that does not fit, by its number.
            BackendError: as ``infer``.
        """
        each, first = rows_of(self._rules.specs, rows), 0
        while some := [*islice(each, self._rules.largest)]:
            with _memory():
                arrays, give = stacked(self._rules.specs, some, first)
            results = self._padded(arrays, len(some))
            alone = not isinstance(some[0], Mapping)
            for place in range(len(some)):  # copies: a row that is kept would keep the whole batch
                yield _shaped(self._names, give, alone, [np.array(result[place]) for result in results])
            first += len(some)

    def submit(self, inputs: Any, *, timeout: float | None = None) -> "Future[Any]":
        """Queue a request; it shares a batch with others that wait.

        An idle session runs it at once. While runs are under way, requests pile up and leave together, in order. In
        a larger batch a row's answer may differ in its last bits, as it does in ``infer``.

        Args:
            inputs: as for ``infer``; copied where the caller could still change them.
            timeout: seconds after which it is not run any more if it still waits; None for never.

        Returns:
            A future of what ``infer`` returns, or raises. Cancelling it while it waits takes it out of the queue.

        Raises:
            InputError: as ``infer``, at once: nothing was queued.
            QueueFullError: too many requests wait.
            BackendError: the session is closed.
        """
        given, arrays, rows = self._checked(inputs)
        give = giver(given.values())
        with _memory():
            arrays = {name: kept(array, given[name]) for name, array in arrays.items()}
        finish = partial(_shaped, self._names, give, not isinstance(inputs, Mapping))
        return self._batcher.submit(arrays, rows, finish, timeout)

    async def ainfer(self, inputs: Any, *, timeout: float | None = None) -> Any:
        """Await the answer to a request; see ``submit``. A task that is cancelled takes its request out of the queue.

        Args:
            inputs: as for ``infer``.
            timeout: seconds to wait for the answer at most; None for ever.

        Raises:
            DeadlineError: the time has passed. A run that is under way goes on, and its answer is dropped.
            InputError: as ``infer``.
            QueueFullError: too many requests wait.
            BackendError: as ``infer``.
        """
        import asyncio

        future = asyncio.wrap_future(self.submit(inputs, timeout=timeout))
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError as error:
            raise DeadlineError(f"ainfer: no answer within {timeout} s. Allow more, or offer less load.") from error

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
        recipe = self.preprocessing
        if k < 1:
            raise InputError(f"classify: expected k of 1 or more, got {k}.")
        m, answers = self.manifest, list[list[Prediction]]()
        each = iter(one_by_one(pictures, recipe))
        while some := [*islice(each, self._rules.largest)]:
            for row in self._scores(preprocess(some, recipe)):
                answers.append(predictions(row, k, m.scores, m.labels, m.name))
        if not answers:
            raise InputError("classify: expected at least one picture, got none.")
        return answers

    def preprocess(self, pictures: Pictures) -> Array:
        """Prepare pictures as the bundle says, for ``infer``; see ``engineworks.runtime.preprocess``.

        Returns:
            ``(N, C, H, W)`` float32; N pictures, C channels. ``(N, H, W, C)`` uint8 where the graph normalises.
        """
        return preprocess(pictures, self.preprocessing)

    def warmup(self, runs: int = 2) -> float:
        """Run zeros at the smallest, the usual and the largest batch, so that no caller pays for the first runs.

        Args:
            runs: how often, each.

        Returns:
            The seconds that it took. The runs are left out of ``stats``.

        Raises:
            InputError: ``runs`` < 1, or an axis beside the batch is free, so that its size would be a guess.
            BackendError: as ``infer``.
        """
        if runs < 1:
            raise InputError(f"warmup: expected 1 run or more, got {runs}.")
        began = perf_counter()
        rules = self._rules
        usual = min(self.manifest.batch.opt, rules.largest)
        for size in sorted({rules.smallest, usual, rules.largest}):
            zeros = self._zeros(size)
            for _ in range(runs):
                self._inflight.run(zeros, size, count=False)
        return perf_counter() - began

    def stats(self) -> Stats:
        """Return what the session has done since it was loaded: counts, and times of the latest runs."""
        return self._tally.read(queued=len(self._batcher), in_flight=len(self._inflight))

    def bare(self, arrays: dict[str, Array]) -> list[Array]:
        """Run checked arrays on the backend itself, past every check and count: for measuring what those cost."""
        return self._inflight.bare(arrays)

    def close(self) -> None:
        """Refuse new work, finish what is queued and what is under way, free the backend; again does nothing.

        An interrupt (Ctrl-C) ends the waiting; a second call goes on with it.
        """
        self._open = False
        _shut(self._batcher, self._inflight)

    def _given(self, inputs: Any) -> dict[str, Any]:
        self._inflight.check()
        if not self._open:
            raise self._inflight.closed()
        return named(self._rules.specs, inputs)

    def _infer_there(self, given: dict[str, Any], alone: bool) -> Any:
        """Run arrays of the session's own GPU where they lie; tensors are answered by tensors that stay there."""
        tensors = giver(given.values()) is not None
        rows = fitting(self._rules, {name: outline(value) for name, value in given.items()})
        with _memory():
            arrays = {name: laid_out(value) for name, value in given.items()}
        results = self._inflight.run(arrays, rows, stay=tensors)
        return _shaped(self._names, as_tensor if tensors else None, alone, results)

    def _checked(self, inputs: Any) -> tuple[dict[str, Any], dict[str, Array], int]:
        given = self._given(inputs)
        with _memory():
            return given, *checked(self._rules, given)

    def _padded(self, arrays: dict[str, Array], rows: int) -> list[Array]:
        """Run rows, the last repeated up to the smallest batch; return the answers to the real ones."""
        if not self._open:
            raise self._inflight.closed()
        missing = max(self._rules.smallest - rows, 0)
        if missing:
            self._tally.add("padded", missing)
            arrays = padded(arrays, missing)
        arrays, _ = checked(self._rules, arrays)
        return [result[:rows] for result in self._inflight.run(arrays, rows)]

    def _scores(self, batch: Array) -> Array:
        return self._padded({self.inputs[0].name: batch}, len(batch))[0]

    def _zeros(self, size: int) -> dict[str, Array]:
        if any(isinstance(axis, str) for spec in self._rules.specs for axis in spec.row):
            raise InputError("warmup: an axis beside the batch is free. Call infer() with arrays of a size of yours.")
        return {
            spec.tensor.name: np.zeros((size, *spec.row) if spec.tensor.shape else (), spec.dtype)  # type: ignore[arg-type]
            for spec in self._rules.specs
        }


@contextmanager
def _memory() -> Iterator[None]:
    """Make an error of ours of memory that does not suffice for inputs."""
    try:
        yield
    except MemoryError as error:
        raise BackendError("out of memory while the inputs were made ready. Pass a smaller batch.") from error


def _shut(batcher: Batcher, inflight: InFlight) -> None:
    batcher.close()
    inflight.close()


def _shaped(names: list[str], give: Give | None, alone: bool, results: list[Array]) -> Any:
    """Make of the outputs what the caller gets; it knows no session, which may be dropped before the answer comes."""
    shaped = [give(result) for result in results] if give else results
    return shaped[0] if alone and len(shaped) == 1 else dict(zip(names, shaped, strict=True))
