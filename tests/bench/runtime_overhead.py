"""What the runtime adds: infer beside the bare session, submit beside hand-made batches, load beside opening the file.

``python runtime_overhead.py BUNDLE…`` (resnet18 and resnet50 are those that the README tells of); LeNet-5 is always
measured. Everything is taken in turns within one run, medians of the rounds.
"""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engineworks import runtime

LENET = Path(__file__).parent.parent / "data" / "lenet5-fp16"
CALLERS = 32
OPEN = """
import sys, time
path, ours, warm = sys.argv[1], sys.argv[2] == "ours", sys.argv[3] == "warm"
if warm:
    import onnxruntime
began = time.perf_counter()
if ours:
    from engineworks import runtime
    runtime.load(path, device="cpu")
else:
    import onnxruntime
    onnxruntime.InferenceSession(path + "/model.onnx", providers=["CPUExecutionProvider"])
print(time.perf_counter() - began)
"""


def bare_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])


def one_call(path: Path, seconds: float = 8.0) -> None:
    """A call of ours after each of the bare session's, so that both meet the same machine."""
    session = bare_session(path)
    with runtime.load(path, device="cpu") as model:
        arrays = inputs(model, 1)
        (x,), names = arrays.values(), [tensor.name for tensor in model.outputs]
        model.warmup()
        bare, ours, end = list[float](), list[float](), time.perf_counter() + seconds
        while time.perf_counter() < end:
            first = time.perf_counter()
            session.run(names, arrays)
            second = time.perf_counter()
            model.infer(x)
            bare.append(second - first)
            ours.append(time.perf_counter() - second)
    ratio = statistics.median(ours) / statistics.median(bare)
    added = statistics.median(one - other for one, other in zip(ours, bare, strict=True)) * 1e6
    print(f"{path.name:<14} infer / bare run: {ratio:.3f}; {added:+.1f} µs a call ({len(ours):,} pairs)")


def many_callers(path: Path, rounds: int = 5, seconds: float = 2.0) -> None:
    """32 threads that wait for their own answers, against the best of hand-made batches."""
    with runtime.load(path, device="cpu") as model:
        model.warmup()
        (row,) = inputs(model, 1).values()
        sizes = sorted({model.manifest.batch.min, 4, 8, 16, model.manifest.batch.max})
        ratios, best_sizes = [], []
        for _ in range(rounds):
            by_size = {size: throughput(model, size, seconds / len(sizes)) for size in sizes}
            best = max(by_size, key=by_size.__getitem__)
            ratios.append(submitted(model, row, seconds) / by_size[best])
            best_sizes.append(best)
        batch = model.stats().rows_per_call
    told = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
    print(
        f"{path.name:<14} submit under {CALLERS} threads / best hand-made batch ({statistics.mode(best_sizes)}): "
        f"{statistics.median(ratios):.2f} ({told}); mean batch {batch:.1f}"
    )


def inputs(model: runtime.Session, size: int) -> dict[str, Any]:
    tensor = model.inputs[0]
    return {tensor.name: np.random.default_rng(0).random((size, *tensor.shape[1:]), np.float32)}  # type: ignore[arg-type]


def throughput(model: runtime.Session, size: int, seconds: float) -> float:
    (batch,) = inputs(model, size).values()
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        model.infer(batch)
        rows += size
    return rows / (time.perf_counter() - began)


def submitted(model: runtime.Session, row: Any, seconds: float) -> float:
    done = [0] * CALLERS
    end = time.perf_counter() + seconds

    def call(number: int) -> None:
        while time.perf_counter() < end:
            model.submit(row).result()
            done[number] += 1

    began = time.perf_counter()
    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def loading(path: Path, rounds: int = 7) -> None:
    """A fresh process each time; ``warm`` has imported onnxruntime before the clock starts."""
    for warm in ("cold", "warm"):
        times: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(rounds):
            for which, column in times.items():
                command = [sys.executable, "-c", OPEN, str(path), which, warm]
                column.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        ours, bare = (statistics.median(times[which]) for which in ("ours", "bare"))
        least = min(times["ours"]) / min(times["bare"])
        print(f"{path.name:<14} load / opening ONNX, {warm}: {ours / bare:.2f} (fastest: {least:.2f}); {ours:.2f} s")


def main(*paths: str) -> None:
    measures: list[Callable[[Path], None]] = [one_call, many_callers, loading]
    for path in (LENET, *map(Path, paths)):
        for measure in measures[: 2 if path == LENET else 3]:
            measure(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
