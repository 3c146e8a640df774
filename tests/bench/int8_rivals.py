"""INT8 on trained EfficientNet-Lite0 by the other quantisers: their graphs, our evaluator and our linter.

    PYTHONPATH=.typing:. python tests/bench/int8_rivals.py ENVIRONMENTS [FOLDER …]

ENVIRONMENTS holds a virtual environment for each of ``modelopt`` (nvidia-modelopt[onnx]), ``nncf`` and ``aimet``
(aimet-onnx); one that is missing is named and passed over. Photographs, crops and evaluation are those of
``int8_quality.py``, which prints ours; each quantiser runs with the settings that its own guide starts from, ONNX
Runtime also as TensorRT can take what it writes.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

LIMIT = 300  # seconds for each quantiser


def modelopt(method: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from modelopt.onnx.quantization import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
            quantize,
        )

        quantize(
            onnx_path=str(folder / "plain.onnx"),
            quantize_mode="int8",
            calibration_data={"image": np.load(folder / "images.npy")},
            calibration_method=method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(folder / "made.onnx"),
        )

    return make


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    for row in np.load(folder / "images.npy"):
        yield {"image": row[None]}


def nncf(folder: Path) -> None:
    import nncf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    model = onnx.load(folder / "plain.onnx")
    given = list(rows(folder))
    onnx.save(nncf.quantize(model, nncf.Dataset(given), subset_size=len(given)), folder / "made.onnx")


def aimet(folder: Path) -> None:
    from aimet_onnx.quantsim import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        QuantizationSimModel,
    )

    simulated = QuantizationSimModel(
        onnx.load(folder / "plain.onnx"), param_type="int8", activation_type="int8", providers=["CPUExecutionProvider"]
    )
    simulated.compute_encodings(list(rows(folder)))
    onnx.save(simulated.to_onnx_qdq(), folder / "made.onnx")


def onnxruntime_defaults(folder: Path) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            self.given = rows(folder)

        def get_next(self) -> Any:
            return next(self.given, None)

    quantization.quantize_static(str(folder / "plain.onnx"), str(folder / "made.onnx"), Reader())


RIVALS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "modelopt, entropy": ("modelopt", "nvidia-modelopt", modelopt("entropy")),
    "modelopt, max": ("modelopt", "nvidia-modelopt", modelopt("max")),
    "nncf": ("nncf", "nncf", nncf),
    "aimet": ("aimet", "aimet-onnx", aimet),
}


def made_by(name: str, environments: Path, folder: Path) -> tuple[str, onnx.ModelProto | None]:
    """Run one quantiser in its environment; return its version and graph, or the last line of its failure."""
    python = environments / RIVALS[name][0] / "bin" / "python"
    if not python.exists():
        return "no environment", None
    (folder / "made.onnx").unlink(missing_ok=True)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), __file__, "--make", name, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT, env=clean)
    except subprocess.TimeoutExpired:
        return f"not done in {LIMIT} s", None
    if done.returncode:
        return (done.stderr.strip() or "no message").splitlines()[-1], None
    return done.stdout.splitlines()[-1], onnx.load(folder / "made.onnx")


def main(environments: Path, folders: list[str]) -> None:
    from engineworks.calibration.lint import lint
    from engineworks.calibration.walk import run_all
    from engineworks.runtime.compare import agreement
    from tests.bench.int8_quality import CROPS, IMAGES, batches, crops, lite0, onnx_runtime, photographs

    known, unknown = photographs(folders)
    images, others = crops(known, -(-IMAGES // len(known)), 0)[:IMAGES], crops(unknown, CROPS, 1)
    graph = lite0()
    reference = run_all(graph, batches(others), optimise="all")

    def say(name: str, made: onnx.ModelProto) -> None:
        found = agreement(reference, run_all(made, batches(others)))
        counts = Counter((finding.severity, finding.rule) for finding in lint(made))
        words = ", ".join(f"{severity} {rule} × {count}" for (severity, rule), count in sorted(counts.items()))
        print(f"{name:<32} {found.sqnr_db:6.2f} dB  {100 * found.top1:5.1f} %  lint: {words or 'nothing'}", flush=True)

    print(f"{len(images)} crops of {len(known)} photographs calibrate, {len(others)} of {len(unknown)} are answered")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(graph, folder / "plain.onnx")
        np.save(folder / "images.npy", images)
        for rival in RIVALS:
            number, made = made_by(rival, environments, folder)
            if made is None:
                print(f"{rival:<32} {number}", flush=True)
            else:
                say(f"{rival} {number}", made)
        onnxruntime_defaults(folder)
        say(f"onnxruntime, its defaults {version('onnxruntime-gpu')}", onnx.load(folder / "made.onnx"))
    for method in ("MinMax", "Percentile", "Entropy"):
        say(f"onnxruntime, {method} {version('onnxruntime-gpu')}", onnx_runtime(graph, images, method))


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        RIVALS[sys.argv[2]][2](Path(sys.argv[3]))
        print(version(RIVALS[sys.argv[2]][1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
