"""ResNet-18 and GoogLeNet of ours, trained on Fashion-MNIST: top-1 in float32, FP16 and INT8 on all test images.

    PYTHONPATH=.typing python tests/bench/int8_fashion.py --data /usr/share/datasets/fashion-mnist --work DIR [NAME …]

``--data`` holds the four idx files (Debian: dataset-fashion-mnist). What is trained stays in ``--work`` and serves the
next run; so do the pictures, which ``export-model`` calibrates on and ``evaluate-model`` reads. Two idle cores train a
network in about ten minutes.
"""

import argparse
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

NAMES = ("resnet18", "googlenet")
CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
MEAN, STD = "0.219", "0.332"  # of the training images, padded to 32×32
CALIBRATE = 1024  # pictures of the training part are written; export-model takes its own number of them
Bytes = npt.NDArray[np.uint8]


def read(data: Path, part: str) -> tuple[Bytes, Bytes]:
    """Return images ``(N, 32, 32)``, two black pixels on every side, and labels ``(N,)``."""
    raw = [gzip.decompress((data / f"{part}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")]
    images = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 28, 28)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), np.frombuffer(raw[1], np.uint8, offset=8)


def write_pictures(images: Bytes, labels: Bytes, folder: Path) -> None:
    """Write one PNG an image into a folder for each class, unless they stand there."""
    if folder.is_dir():
        return
    partial = folder.with_suffix(".partial")
    for label in range(10):
        (partial / f"{label}-{CLASSES[label]}").mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(partial / f"{label}-{CLASSES[label]}" / f"{number:05}.png")
    partial.rename(folder)


def train(name: str, images: Bytes, labels: Bytes, file: Path, epochs: int) -> None:
    """Train by stochastic gradients on mirrored, moved pictures, one cycle of the rate; keep the weights."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from engineworks.models import googlenet, resnet

    torch.manual_seed(0)
    builder = {"resnet18": resnet.resnet18, "googlenet": googlenet.googlenet}[name]
    module: nn.Module = builder(10)
    module = module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    size = 128
    steps = epochs * (len(x) // size)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps, pct_start=0.25)
    began = time.perf_counter()
    for epoch in range(epochs):
        order, total = torch.randperm(len(x)), 0.0
        for start in range(0, len(x) - size + 1, size):
            some = order[start : start + size]
            answer = module(prepared(augmented(x[some])))
            scores = answer if isinstance(answer, torch.Tensor) else answer[0]
            loss = nn.functional.cross_entropy(scores, y[some])
            if not isinstance(answer, torch.Tensor):
                loss = loss + 0.3 * sum(nn.functional.cross_entropy(part, y[some]) for part in answer[1:])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item()
        say(f"{name}: epoch {epoch + 1} of {epochs}, loss {total / (len(x) // size):.3f}, "
            f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, file)


def augmented(images: Any) -> Any:
    """Mirror half of the pictures, and move each by up to two pixels; ``(N, 32, 32)`` uint8."""
    import torch

    mirrored = torch.where(torch.rand(len(images), 1, 1) < 0.5, images, images.flip(2))
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return mirrored.roll((down, right), (1, 2))


def prepared(images: Any) -> Any:
    """Do what the bundle's preprocessing does: ``(N, 3, 32, 32)`` float32."""
    import torch

    x = (images[:, None].float() / 255 - float(MEAN)) / float(STD)
    return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def export(name: str, precision: str, work: Path) -> Path:
    """Export a trained network by the command; INT8 is calibrated on pictures of the training part."""
    from engineworks.export.cli import main as export_model

    bundle = work / f"{name}-{precision}"
    asked = [
        name,
        f"--{precision}",
        "--model-arg",
        "num_classes=10",
        "--shape",
        "3x32x32",
        "--mean",
        MEAN,
        "--std",
        STD,
    ]
    asked += ["--weights", str(work / f"{name}.safetensors"), "--engine", "none", "-o", str(bundle), "--force", "-q"]
    asked += ["--calib-data", str(work / "train")] if precision == "int8" else []
    if export_model(asked):
        raise SystemExit(f"export-model {' '.join(asked)} failed")
    return bundle


def evaluate(bundle: Path, other: Path, data: Path) -> dict[str, Any]:
    """Run ``evaluate-model`` on two bundles and return what it prints for programs."""
    program = "from engineworks.runtime.evaluate import run; run()"
    command = [sys.executable, "-c", program, str(bundle), str(other), "--data", str(data), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(name: str, work: Path) -> None:
    """Print each precision's top-1, its interval and its distance from float32, in points."""
    float32 = export(name, "fp32", work)
    for precision in ("fp16", "int8"):
        found = evaluate(float32, export(name, precision, work), work / "test")
        if precision == "fp16":
            print(line(name, "fp32", found["bundles"][0]), flush=True)
        paired = found["paired"]
        print(f"{line(name, precision, found['bundles'][1])}, {paired['difference_points']:+.2f} points, "
              f"p {paired['p']:.2f}, the same answer to {paired['same_answer']:.2%}", flush=True)  # fmt: skip


def line(name: str, precision: str, report: dict[str, Any]) -> str:
    top = report["top1"]
    return f"{name:10} {precision} {top['share']:7.2%} ({top['low']:.2%} to {top['high']:.2%}), {top['of']:,} images"


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    images, labels = read(given.data, "train")
    for name in given.names:
        weights = given.work / f"{name}.safetensors"
        if not weights.is_file():
            train(name, images, labels, weights, given.epochs)
        write_pictures(images[:CALIBRATE], labels[:CALIBRATE], given.work / "train")
        write_pictures(*read(given.data, "t10k"), given.work / "test")
        show(name, given.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
