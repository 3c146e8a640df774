"""What share of FP16 and INT8 is realised in TensorRT-RTX engines, on Ampere (sm86) and Turing (sm75), and if it pays.

``python tests/bench/xray_table.py FOLDER [NETWORK...]``. Each network is exported in FP16 and INT8 into FOLDER (a
bundle that is there is taken as it is), with scales of synthetic images: the types of kernels do not depend on them.
Engines for each target are then built from the bundles' graphs, the rule that refuses INT8 on sm75 taken away, and
looked into. No GPU: what is said of times is ``inspect-model --against``'s prediction.
"""

import sys
from pathlib import Path

from engineworks.export import engine as compiler
from engineworks.export.cli import main as export_model
from engineworks.runtime import Bundle, open_bundle
from engineworks.runtime.pays import predict
from engineworks.runtime.xray import Layer, Xray, look_into

NETWORKS = ("resnet18", "googlenet", "vgg16")
PRECISIONS = {"fp16": ["--fp16"], "int8": ["--int8", "--calib-data", "synthetic", "--calib-images", "16"]}
TARGETS = {"sm86": "A10", "sm75": "T4"}
ROWS = 8
HEADS = (
    "network", "asked", "target", "convolutions as asked", "multiply-adds as asked", "found in", "kernels",
    "MB a batch", "predicted against FP16",
)  # fmt: skip


def bundle(folder: Path, network: str, precision: str) -> Bundle:
    out = folder / f"{network}-{precision}"
    if not out.exists():
        extra = ["--quality", "fast", "--fp16-share", "0"] if precision == "int8" else []
        flags = [*PRECISIONS[precision], *extra, "--engine", "none", "--batch", f"1:{ROWS}:{ROWS}", "-q"]
        if export_model([network, *flags, "-o", str(out)]) != 0:
            raise SystemExit(f"{network} {precision} was not exported")
    return open_bundle(out)


def xray(made_of: Bundle, target: str) -> Xray:
    content, batch = made_of.read("model.onnx"), made_of.manifest.batch
    sizes = (batch.min, batch.opt, batch.max)
    made = compiler.compile_engine(content, flavour="rtx", batch=sizes, targets=(target,))
    return look_into(made.plan, content, ROWS)


def share(layers: list[Layer]) -> str:
    return f"{sum(layer.realised for layer in layers)} of {len(layers)}"


def row(network: str, precision: str, target: str, found: Xray, half: Xray) -> tuple[str, ...]:
    work = sum(layer.multiply_adds for layer in found.layers)
    done = sum(layer.multiply_adds for layer in found.layers if layer.realised)
    kinds = sorted({layer.found for layer in found.layers}, key=found.share, reverse=True)
    verdict = "-" if precision == "fp16" else predict([found], [half], TARGETS[target])[0].verdict
    return (
        network, precision, target, share([layer for layer in found.layers if layer.operator == "Conv"]),
        f"{done / work:.1%}", ", ".join(f"{kind} {found.share(kind):.1%}" for kind in kinds), str(len(found.rows)),
        f"{found.bytes / 1e6:.1f}", f"{verdict} ({TARGETS[target]})" if verdict != "-" else "-",
    )  # fmt: skip


def main(folder: Path, networks: list[str]) -> None:
    compiler._FLOAT_ALONE = "none"
    folder.mkdir(exist_ok=True)
    print(f"batch {ROWS}\n\n| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for network in networks or NETWORKS:
        bundles = {precision: bundle(folder, network, precision) for precision in PRECISIONS}
        for target in TARGETS:
            half = xray(bundles["fp16"], target)
            for precision, made_of in bundles.items():
                found = half if precision == "fp16" else xray(made_of, target)
                print(f"| {' | '.join(row(network, precision, target, found, half))} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
