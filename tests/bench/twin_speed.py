"""The CPU twin of ResNet-50 against float32 on this CPU.

    PYTHONPATH=.typing:. python tests/bench/twin_speed.py [ROUNDS]

One thread each, in turns, by the thread's own CPU time, so that what else the machine does counts little; medians. What
ONNX Runtime runs is listed by kernel: a float one among them would be an island that was not fused. The ratio is the
CPU's as much as ours: with VNNI an int8 product is one instruction, without it three.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from engineworks.calibration.observe import observe
from engineworks.calibration.twin import cpu_twin, saturates, twin_tensors
from tests.bench.calibration_cost import export, images


def open_session(model: onnx.ModelProto, profile: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(session: Any, row: dict[str, Any]) -> float:
    began = time.thread_time()
    session.run(None, row)
    return time.thread_time() - began


def kernels(model: onnx.ModelProto, row: dict[str, Any], folder: Path) -> Counter[str]:
    session = open_session(model, folder / "profile")
    session.run(None, row)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder / "resnet50.onnx")
        plain = onnx.load(folder / "resnet50.onnx")
        rows = [{key: np.asarray(value) for key, value in row.items()} for row in images(4)]
        seen = observe(plain, list(twin_tensors(plain)), rows).tensors
        twin = cpu_twin(plain, {key: (one.minimum, one.maximum) for key, one in seen.items()}, reduced=True)
        first, second = open_session(plain), open_session(twin)
        pairs = [(seconds(first, rows[0]), seconds(second, rows[0])) for _ in range(rounds + 1)][1:]
        exact, fast = median(one for one, _ in pairs), median(two for _, two in pairs)
        ratios = sorted(one / two for one, two in pairs)
        print(f"float32 {1000 * exact:.1f} ms, twin {1000 * fast:.1f} ms of one thread: {exact / fast:.2f} × "
              f"(single rounds {ratios[0]:.2f} to {ratios[-1]:.2f}); int8 saturates here: {saturates()}")  # fmt: skip
        print(", ".join(f"{kind} × {count}" for kind, count in kernels(twin, rows[0], folder).most_common()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
