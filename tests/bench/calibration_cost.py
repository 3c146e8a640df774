"""What calibrating ResNet-50 costs: plain inference, our pass, ONNX Runtime's calibrators; time and peak memory.

    PYTHONPATH=.typing python tests/bench/calibration_cost.py [--images 64] [--rounds 3] [--no-histograms]

Times are medians of ratios to plain inference of the same images in the same round, without imports; CPU seconds stand
beside wall time, for a machine that others use too. Each peak is that of a process of its own. ONNX Runtime's
Percentile and Entropy keep every tensor of every image: about 113 MB an image.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIZES = (32, 128, 512)
METHODS = ("minmax", "percentile", "mse", "entropy")


def export(file: Path) -> None:
    """Export ResNet-50 with the project's own random weights, which keep activations alive."""
    from engineworks.export.apart import whole
    from engineworks.export.prove import export_graph
    from engineworks.export.recipe import Recipe
    from engineworks.models.registry import find
    from engineworks.models.weights import build_network

    image = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    exported = export_graph(
        build_network(find("resnet50"), None, seed=0), {"image": image}, ("scores",), Recipe("resnet50")
    )
    file.write_bytes(whole(exported.graph, exported.weights))


def images(count: int) -> Iterator[dict[str, Any]]:
    """Yield smooth noise, made one by one: nothing here grows with the number."""
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = generator.standard_normal((1, 3, 28, 28), dtype=np.float32)
        yield {"image": np.kron(coarse, np.ones((8, 8), np.float32)) + 0.3 * generator.standard_normal(
            (1, 3, 224, 224), dtype=np.float32
        )}  # fmt: skip


def plain(file: Path, count: int) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    for row in images(count):
        session.run(None, row)


def quantised(content: bytes) -> list[str]:
    """Name what INT8 for TensorRT quantises: the data inputs of Conv and Gemm, and one input of each Add."""
    from onnx import ModelProto

    nodes = ModelProto.FromString(content).graph.node
    names = [node.input[0] for node in nodes if node.op_type in {"Conv", "Gemm", "Add"}]
    produced = {name: node.op_type for node in nodes for name in node.output}
    return [name for name in dict.fromkeys(names) if produced.get(name) != "Conv"]


def ours(file: Path, count: int, every: int = 8) -> None:
    from engineworks.calibration.observe import observe
    from engineworks.calibration.scales import scales

    content = file.read_bytes()
    found = observe(content, quantised(content), images(count), every=every)
    for method in METHODS:
        scales(found, method)  # type: ignore[arg-type]


def theirs(file: Path, count: int, method: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = images(count)

        def get_next(self) -> Any:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            file, augmented_model_path=f"{folder}/augmented.onnx", calibrate_method=getattr(CalibrationMethod, method)
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.collect_data(Reader())
        calibrator.compute_data()


JOBS: dict[str, Callable[[Path, int], None]] = {
    "plain inference": plain,
    "ours, 1 of 8, four methods": ours,
    "ours, every element, four methods": lambda file, count: ours(file, count, 1),
    "ORT MinMax": lambda file, count: theirs(file, count, "MinMax"),
    "ORT Percentile": lambda file, count: theirs(file, count, "Percentile"),
    "ORT Entropy": lambda file, count: theirs(file, count, "Entropy"),
}


def measured(name: str, file: Path, count: int) -> dict[str, float]:
    """Run one job in a process of its own: its seconds without imports and loading, and its peak memory in MB."""
    command = [sys.executable, __file__, "--job", name, "--file", str(file), "--images", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def job(name: str, file: Path, count: int) -> None:
    import onnx
    import onnxruntime

    assert onnx.__version__ and onnxruntime.__version__
    start, busy = time.perf_counter(), time.process_time()
    JOBS[name](file, count)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(json.dumps({"seconds": seconds, "cpu": busy, "peak": peak()}))


def peak() -> float:
    """Return this process's largest resident memory in MB; getrusage would also count its parent's before the exec."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-histograms", action="store_true", help="leave out ORT Percentile and Entropy")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job(given.job, given.file, given.images)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        file = given.file or Path(folder, "resnet50.onnx")
        if not file.exists():
            export(file)
        names = [name for name in JOBS if not (given.no_histograms and name in {"ORT Percentile", "ORT Entropy"})]
        print(f"ResNet-50, {given.images} images; medians of {given.rounds} rounds")
        table(names, file, given.images, given.rounds)
        for count in SIZES:
            peak = measured("ours, 1 of 8, four methods", file, count)["peak"]
            print(f"ours, {count:4} images: peak {peak:7.0f} MB", flush=True)
    return 0


def table(names: list[str], file: Path, count: int, rounds: int) -> None:
    found = []
    for number in range(rounds):
        found.append({name: measured(name, file, count) for name in names})
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
    for name in names:
        wall, cpu = (
            median(one[name][key] / one["plain inference"][key] for one in found) for key in ("seconds", "cpu")
        )
        peak = max(one[name]["peak"] for one in found)
        print(f"{name:36} time {wall:6.2f}, CPU {cpu:6.2f} × plain   peak {peak:7.0f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
