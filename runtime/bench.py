"""The command ``bench-model``: latency and throughput of every backend that runs here, beside its bare call."""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from engineworks.runtime.backend import BackendName, Device
from engineworks.runtime.command import DeviceType, Progress, leave, status_of
from engineworks.runtime.errors import BackendError, EngineworksError, InputError
from engineworks.runtime.loading import load
from engineworks.runtime.session import Session
from engineworks.runtime.stats import quantile

Array = npt.NDArray[Any]
_SLICES = 6  # of ours and of the bare call in turn, so that both see the same machine


@dataclass(frozen=True)
class Cell:
    """One measurement: ``threads`` callers at once, each with ``batch`` rows a call.

    Attributes:
        backend: what ran.
        batch: rows in a call.
        threads: callers.
        calls: how many calls were timed.
        p50_ms: half of the calls took no longer, in milliseconds.
        p90_ms: nine in ten.
        p99_ms: 99 in 100.
        rows_per_second: of all callers together.
        ratio: our median latency over that of the backend's bare call, measured in turns with it.
    """

    backend: str
    batch: int
    threads: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rows_per_second: float
    ratio: float


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``bench-model`` with these arguments (default: the process's own); return its exit status."""
    return status_of(_command, "bench-model", argv)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="BUNDLE")
@click.option("--device", type=DeviceType(), default="auto", show_default=True, help="Where models run.")
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Default: smallest, usual, largest."
)
@click.option("--threads", type=click.IntRange(min=1), multiple=True, help="Callers at once; default 1 and 4.")
@click.option(
    "--op-threads", type=click.IntRange(min=0), default=0, help="CPU threads of one run; 0: the backend's own."
)
@click.option("--seconds", type=click.FloatRange(min=0.001), default=2.0, show_default=True, help="For each line.")
@click.option("--json", "as_json", is_flag=True, help="Print everything for programs.")
def _command(
    path: str,
    device: Device,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    op_threads: int,
    seconds: float,
    as_json: bool,
) -> int:
    """Time BUNDLE on every backend that runs here, at several batches and numbers of callers."""
    cells, passed_over = list[Cell](), list[str]()
    for session in sessions(path, device, op_threads, passed_over):
        with session:
            cells += measure(session, batches, threads or (1, 4), seconds)
            summary = session.manifest.summary
    if not cells:
        raise BackendError(f"nothing runs {path} here: {'; '.join(passed_over)}.")
    content = {"bundle": summary, "cells": [asdict(cell) for cell in cells], "passed_over": passed_over}
    click.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(content)))
    return 0


def sessions(path: str, device: Device, op_threads: int, passed_over: list[str]) -> Iterator[Session]:
    """Open the bundle once for each backend and device that runs it; tell the others in ``passed_over``.

    Raises:
        BundleError: it is none, or damaged: then no backend is at fault.
    """
    devices: tuple[Device, ...] = ("cuda", "cpu") if device == "auto" else (device,)
    backends: tuple[BackendName, ...] = ("tensorrt", "rtx", "onnxruntime")
    for backend in backends:
        for place in devices if backend == "onnxruntime" else devices[:1]:
            try:
                session = load(path, device=place, backend=backend, threads=op_threads)
            except BackendError as error:
                passed_over.append(str(error))
            else:
                yield session


def measure(session: Session, batches: tuple[int, ...], threads: tuple[int, ...], seconds: float) -> Iterator[Cell]:
    """Warm a session up and time every batch with every number of callers.

    Raises:
        InputError: a batch that the bundle does not take.
    """
    batch = session.manifest.batch
    sizes = batches or tuple(sorted({batch.min, batch.opt, batch.max}))
    session.warmup()
    progress, number = Progress(session.backend.name, len(sizes) * len(threads)), 0
    try:
        for size in sizes:
            arrays = random_inputs(session, size)
            session.infer(arrays)  # refused here where it does not fit
            for callers in threads:
                yield cell(session, arrays, size, callers, seconds)
                number += 1
                progress.at(number)
    finally:
        progress.close()


def random_inputs(session: Session, size: int) -> dict[str, Array]:
    """Return arrays that fit: numbers in [0, 1) or zeros and ones, the same every time.

    Raises:
        InputError: an axis beside the batch is free.
    """
    generator, arrays = np.random.default_rng(0), dict[str, Array]()
    for tensor in session.inputs:
        row = tensor.shape[1:]
        if any(isinstance(axis, str) for axis in row):
            raise InputError(f"input {tensor.name!r}: an axis beside the batch is free; its size would be a guess.")
        values = generator.random((size, *row)) * (1 if np.dtype(tensor.dtype).kind == "f" else 2)  # type: ignore[arg-type]
        arrays[tensor.name] = values.astype(tensor.dtype)
    return arrays


def cell(session: Session, arrays: dict[str, Array], size: int, callers: int, seconds: float) -> Cell:
    """Time so many callers for so many seconds, half of them for the bare call, in turns."""
    given: Any = next(iter(arrays.values())) if len(arrays) == 1 else arrays
    ours, bare, spent = list[float](), list[float](), 0.0
    for _ in range(_SLICES):
        bare += _timed(lambda: session.bare(arrays), callers, seconds / _SLICES / 2)[0]
        times, wall = _timed(lambda: session.infer(given), callers, seconds / _SLICES / 2)
        ours += times
        spent += wall
    ours.sort()
    p50, p90, p99 = (1e3 * quantile(ours, share) for share in (0.5, 0.9, 0.99))
    ratio = statistics.median(ours) / statistics.median(bare)
    return Cell(session.backend.name, size, callers, len(ours), p50, p90, p99, size * len(ours) / spent, ratio)


def _timed(call: Callable[[], Any], callers: int, seconds: float) -> tuple[list[float], float]:
    """Return the seconds of every call of all callers, and of the whole."""
    times: list[list[float]] = [[] for _ in range(callers)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(callers)

    def repeat(own: list[float]) -> None:
        try:
            barrier.wait()
            end = time.perf_counter() + seconds
            while not own or time.perf_counter() < end:
                began = time.perf_counter()
                call()
                own.append(time.perf_counter() - began)
        except EngineworksError as error:
            failures.append(error)

    began = time.perf_counter()
    threads = [threading.Thread(target=repeat, args=(own,), daemon=True) for own in times[1:]]
    for thread in threads:
        thread.start()
    repeat(times[0])
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [value for own in times for value in own], time.perf_counter() - began


def _lines(content: dict[str, Any]) -> Iterator[str]:
    yield str(content["bundle"])
    yield "  backend            batch callers    p50 ms    p90 ms    p99 ms     rows/s  ratio"
    for row in content["cells"]:
        yield (
            f"  {row['backend']:<18} {row['batch']:>5} {row['threads']:>7} {row['p50_ms']:>9.3f} {row['p90_ms']:>9.3f} "
            f"{row['p99_ms']:>9.3f} {row['rows_per_second']:>10,.1f} {row['ratio']:>6.3f}"
        )
    yield "  ratio: our median over that of the backend's bare call, in turns"
    yield from (f"  passed over: {told}" for told in content["passed_over"])


if __name__ == "__main__":
    run()
