"""One version of a model, being served: its session, a queue before it, and what it has counted.

It is closed when it has been retired and the last request that was given to it is answered: none is lost.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.batcher import Ask, Batcher
from engineworks.runtime.checks import checked, contract
from engineworks.runtime.errors import EngineworksError
from engineworks.runtime.loading import load
from engineworks.runtime.oip_describe import joins_batches
from engineworks.runtime.serve_measure import Measure
from engineworks.runtime.session import Session
from engineworks.runtime.stats import Tally

Array = npt.NDArray[Any]
Observe = Callable[[int, float], None]
"""Told of every run: its rows and its seconds."""


@dataclass(frozen=True)
class Opening:
    """How bundles are opened: see ``engineworks.runtime.load``; ``queue`` requests may wait for each."""

    device: str = "auto"
    backend: Any = "auto"
    strict: bool = False
    threads: int = 0
    contexts: int = 2
    max_batch: int | None = None
    queue: int = 256


@dataclass(frozen=True)
class Outcome:
    """The outputs of a request, and the nanoseconds that it waited and that its run took."""

    outputs: dict[str, Array]
    queue_ns: int
    infer_ns: int


class Served:
    """A loaded version. ``users`` counts the requests that hold it; only the event loop's thread changes it."""

    def __init__(self, name: str, version: str, session: Session, opening: Opening) -> None:
        self.name, self.version, self.session = name, version, session
        self.manifest = session.manifest
        self.backend = session.backend.name
        self.joins = joins_batches(self.manifest)
        self.rules = contract(self.manifest.inputs, self.manifest.batch, opening.max_batch)
        self.measure, self.tally = Measure(), Tally()
        self.users, self.retired, self.failing, self.probing = 0, False, False, False
        self.observe: Observe | None = None
        self._names = [tensor.name for tensor in self.manifest.outputs]
        self._latest = threading.local()
        self._batcher = Batcher(
            self._run,
            largest=self.rules.largest,
            joins=self.joins,
            capacity=opening.queue,
            workers=opening.contexts,
            tally=self.tally,
        )

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._batcher)

    def submit(self, given: Mapping[str, Array], timeout: float | None) -> "Future[Outcome]":
        """Queue a request whose arrays nobody changes any more.

        Raises:
            InputError: an array that does not fit.
            QueueFullError: too many wait.
        """
        ask = self.ask(given, timeout)
        return self._batcher.submit(ask.arrays, ask.rows, ask.finish, timeout)

    def ask(self, given: Mapping[str, Array], timeout: float | None) -> Ask:
        """Make a request ready for ``submit_all``.

        Raises:
            InputError: an array that does not fit.
        """
        arrays, rows = checked(self.rules, given)
        began = time.perf_counter_ns()
        return Ask(arrays, rows, lambda outputs: self._outcome(outputs, began), timeout)

    def submit_all(self, asked: Sequence[Ask]) -> "list[Future[Outcome]]":
        """Queue what somebody has gathered: all or none, and as one batch where it fits one.

        Raises:
            QueueFullError: not so many may wait.
        """
        return self._batcher.submit_all(asked)

    def probe(self) -> bool:
        """Run zeros, to see whether a backend that failed is alive again; where zeros cannot be made, hope so."""
        try:
            if _fixed(self.session):
                self.session.warmup(1)
            self.failing = False
        except EngineworksError:
            pass
        finally:
            self.probing = False
        return not self.failing

    def close(self) -> None:
        """Finish what is queued, then free the backend."""
        self._batcher.close()
        self.session.close()

    def _run(self, arrays: dict[str, Array], rows: int) -> list[Array]:
        began = time.perf_counter_ns()
        try:
            answers = self.session.infer(arrays)
        except EngineworksError:
            self.failing = True
            raise
        ended = time.perf_counter_ns()
        self.failing = False
        self._latest.run = began, ended - began
        self.measure.ran(rows, ended - began)
        if self.observe is not None:
            self.observe(rows, (ended - began) / 1e9)
        return [answers[name] for name in self._names]

    def _outcome(self, outputs: list[Array], submitted: int) -> Outcome:
        """Called by the worker that has just run the request."""
        began, spent = self._latest.run
        return Outcome(dict(zip(self._names, outputs, strict=True)), max(began - submitted, 0), spent)


def open_served(name: str, version: str, path: Path, opening: Opening) -> Served:
    """Load a bundle, every digest checked, and warm it up where its shapes are known.

    Raises:
        EngineworksError: it cannot be opened or does not run; whatever was opened is closed again.
    """
    session = load(
        path,
        device=opening.device,
        backend=opening.backend,
        strict=opening.strict,
        threads=opening.threads,
        contexts=opening.contexts,
        max_batch=opening.max_batch,
    )
    try:
        if _fixed(session):
            session.warmup(1)
        return Served(name, version, session, opening)
    except BaseException:
        session.close()
        raise


def _fixed(session: Session) -> bool:
    return all(isinstance(axis, int) for tensor in session.inputs for axis in tensor.shape[1:])


def padded_picture(served: Served, batch: Array) -> dict[str, Array]:
    """Return the inputs for one prepared picture, repeated up to the smallest batch that the model takes."""
    missing = served.rules.smallest - len(batch)
    if missing > 0:
        batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
    return {served.manifest.inputs[0].name: batch}
