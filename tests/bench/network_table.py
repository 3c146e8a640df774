"""A table of every network: its size, its graph, what exporting it costs, and how near to PyTorch it is.

``python tests/bench/network_table.py [NETWORK...]``. Each network is exported twice by the command, cold: in float32,
whose figures against PyTorch at batches 1, 2 and 4 are shown, and in FP16; both with an RTX engine.
"""

import os
import sys
import tempfile
from pathlib import Path

from watch import run_watched  # type: ignore[import-not-found]  # it lies beside this script

from engineworks.models import NETWORKS
from engineworks.runtime import open_bundle
from engineworks.runtime.manifest import Manifest

EXPORT = [str(Path(sys.executable).parent / "export-model")]
HEADS = (
    "network", "parameters", "multiply-adds", "nodes", "export FP16, s", "max difference, relative", "engine FP32, MB",
    "engine FP16, MB", "peak FP16, MB",
)  # fmt: skip


def export(name: str, precision: str, batch: str, folder: str) -> tuple[Manifest, float, float]:
    out = f"{folder}/{name}-{precision}"
    environment = os.environ | {"ENGINEWORKS_CACHE": folder}
    command = [*EXPORT, name, f"--{precision}", "--batch", batch, "--engine", "rtx", "--no-cache", "-o", out]
    seconds, megabytes = run_watched(command, environment)
    return open_bundle(out).manifest, seconds, megabytes


def engine_size(manifest: Manifest) -> float:
    return sum(manifest.files[engine.file].bytes for engine in manifest.engines) / 1e6


def row(name: str, batch: str) -> tuple[str, ...]:
    network = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        whole, _, _ = export(name, "fp32", batch, folder)
        half, seconds, peak = export(name, "fp16", batch, folder)
    difference = max(rung.max_rel for rung in whole.parity)
    return (
        name, f"{network.parameters / 1e6:.2f} M", f"{network.multiply_adds / 1e9:.3f} G", str(whole.graph["nodes"]),
        f"{seconds:.1f}", f"{difference:.1e}", f"{engine_size(whole):.1f}", f"{engine_size(half):.1f}", f"{peak:.0f}",
    )  # fmt: skip


def main(names: list[str]) -> None:
    batch = os.environ.get("BATCH", "1:2:4")
    print(f"batches {batch}\n\n| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for name in names or NETWORKS:
        print(f"| {' | '.join(row(name, batch))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
