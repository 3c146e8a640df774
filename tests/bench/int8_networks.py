"""Every network of ours at INT8, built by TensorRT-RTX from the graph as written: ``int8_networks.py [NAME …]``.

Calibrated on crops of one photograph, or on digits, as the samples are: real pictures, but few and alike, and most of
the networks untrained. So the decibels tell that the way works, not how accurate INT8 is. A failure is a row.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.export.samples import sample_inputs
from engineworks.models import NETWORKS, find
from engineworks.runtime.manifest import Batch
from engineworks.runtime.preprocessing import Preprocessing

TARGETS = ("sm86", "sm89")


def row(name: str, folder: Path) -> str:
    began = time.perf_counter()
    data = folder / "inputs.npy"
    pictures = sample_inputs(Preprocessing.from_json(dict(find(name).preprocessing)))
    np.save(data, np.concatenate([pictures, pictures[..., ::-1]]))
    recipe: dict[str, Any] = {"batch": Batch(1, 2, 4), "engine": "rtx", "targets": TARGETS}
    try:
        made = export_model(
            Recipe(name, "int8", calib_data=str(data), calib_images=16, quality="fast", **recipe),
            folder / "int8",
            use_cache=False,
        ).manifest
    except Exception as error:  # whatever it is, the other networks are still to be built
        return f"{name:16} FAILED: {type(error).__name__}: {error}"
    best = {rung.candidate: rung.sqnr_db for rung in made.parity if rung.batch == made.batch.max}
    layers, (engine,) = made.precision.realised, made.engines
    int8 = sum(number for kind, number in engine.layer_types.items() if kind.endswith(" int8"))
    size = made.files[engine.file].bytes / 1e6
    twin = f"{best['onnx-int8-cpu']:5.1f}" if "onnx-int8-cpu" in best else " none"
    whole = "" if int8 >= layers["int8"] else "  NOT ALL INT8 IN THE ENGINE"
    return (
        f"{name:16} {layers['int8']:4} of {sum(layers.values()):4} layers, {int8:4} in the engine, "
        f"{best['onnx-int8']:5.1f} dB, twin {twin} dB, engine {size:6.1f} MB, "
        f"{time.perf_counter() - began:5.0f} s{whole}"
    )


def main(names: list[str]) -> None:
    for name in names or sorted(NETWORKS, key=lambda name: find(name).parameters):
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
