"""What ``import engineworks.runtime`` costs beside ``import numpy``: seconds and resident memory, medians."""

import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FIRST_ANSWER = f"""engineworks.runtime
import numpy
with engineworks.runtime.load({str(HERE.parent / "data" / "lenet5-fp16")!r}) as model:
    model.infer(numpy.zeros((1, 1, 32, 32), numpy.float32))"""
SCRIPT = """
import time
began = time.perf_counter()
import {module}
spent = time.perf_counter() - began
kilobytes = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(spent, int(kilobytes) / 1024)
"""


def measure(module: str) -> tuple[float, float]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)], check=True, capture_output=True, text=True
    )
    spent, memory = run.stdout.split()
    return float(spent), float(memory)


def main(rounds: int = 11) -> None:
    scripts = {name: name for name in ("numpy", "engineworks.runtime", "onnxruntime", "torch")}
    scripts["runtime, load, infer"] = FIRST_ANSWER
    runs = {name: [measure(script) for _ in range(rounds)] for name, script in scripts.items()}
    base = [statistics.median(column) for column in zip(*runs["numpy"], strict=True)]
    for name, rows in runs.items():
        spent, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:<20} {spent:6.3f} s ({spent / base[0]:4.2f}×)  {memory:6.1f} MiB ({memory / base[1]:4.2f}×)")


if __name__ == "__main__":
    main()
