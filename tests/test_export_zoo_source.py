"""Networks of timm and torchvision: their preprocessing in our words gives what their own transforms give."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engineworks import runtime
from engineworks.export import zoo
from engineworks.export.inputs import parse_shape
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.models.samples import photograph
from engineworks.models.zoo_import import import_torchvision
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch
from engineworks.runtime.preprocessing import Preprocessing, preprocess

CONFIG: dict[str, Any] = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3),
    "crop_pct": 0.875, "crop_mode": "center",
}  # fmt: skip


# --- configurations in our words: no zoo needed


@pytest.mark.parametrize(
    ("changes", "resize"),
    [
        ({}, 256),
        ({"crop_pct": 0.9}, 248),
        ({"crop_pct": 0.95}, 235),
        ({"crop_pct": 1.0}, 224),
        ({"input_size": (3, 288, 288), "crop_pct": 0.95}, 303),
        ({"crop_mode": "squash"}, [256, 256]),
        ({"input_size": (3, 192, 256)}, [219, 292]),
    ],
)
def test_timms_crop_becomes_a_size_and_a_crop_rounded_as_timm_does(changes: dict[str, Any], resize: Any) -> None:
    config = CONFIG | changes
    found = zoo._of_timm(config)
    assert found is not None
    assert found["resize"] == resize
    assert found["crop"] == list(config["input_size"][1:])
    Preprocessing.from_json(found)


@pytest.mark.parametrize("changes", [{"crop_mode": "border"}, {"input_size": (4, 8, 8)}])
def test_what_has_no_words_of_ours_is_no_preprocessing(changes: dict[str, Any]) -> None:
    assert zoo._of_timm(CONFIG | changes) is None


def preset(**changes: Any) -> Any:
    content = {
        "crop_size": [224], "resize_size": [232], "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3),
        "interpolation": SimpleNamespace(value="bilinear"),
    }  # fmt: skip
    return SimpleNamespace(**{name: value for name, value in (content | changes).items() if value is not None})


def test_torchvisions_preset_becomes_a_size_and_a_crop() -> None:
    found = zoo._of_torchvision(preset())
    assert found is not None
    assert (found["resize"], found["crop"], found["interpolation"]) == (232, [224, 224], "bilinear")
    segmentation = zoo._of_torchvision(preset(crop_size=None))
    assert segmentation is not None
    assert segmentation["crop"] is None


@pytest.mark.parametrize(
    "changes", [{"mean": None}, {"resize_size": None}, {"resize_size": [1, 2]}, {"crop_size": (1, 2)}]
)
def test_presets_for_video_and_detection_are_no_preprocessing(changes: dict[str, Any]) -> None:
    assert zoo._of_torchvision(preset(**changes)) is None


def test_a_network_without_an_input_size_asks_for_one() -> None:
    with pytest.raises(ExportError, match=r"^torchvision:x: its configuration names no input size\. Add --shape 3x"):
        zoo._shape(Recipe("torchvision:x"), None)


@pytest.mark.parametrize("shapes", [("3x8x8", "3x8x8"), ("image:3x8x8",), ("3x8x8:uint8",), ("16",)])
def test_a_zoo_takes_one_float32_picture(shapes: tuple[str, ...]) -> None:
    with pytest.raises(ExportError, match=r"^--shape: timm:x takes one float32 picture"):
        zoo._shape(Recipe("timm:x", shapes=tuple(map(parse_shape, shapes))), None)


# --- with the zoos themselves

slow = pytest.mark.slow
quiet = pytest.mark.filterwarnings("ignore")  # the zoos' own


@pytest.fixture(scope="module")
def torchvision() -> Any:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    import_torchvision()
    return importlib.import_module("torchvision")


@pytest.fixture(scope="module")
def timm(torchvision: Any) -> Any:
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "cache"))


def prepared(content: dict[str, Any] | None) -> Any:
    assert content is not None
    return preprocess(photograph(), Preprocessing.from_json(content))[0]


@slow
@quiet
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_16", "efficientnet_v2_s", "inception_v3", "mobilenet_v3_small", "swin_t"]
)
def test_torchvisions_own_transform_gives_the_same_pixels(torchvision: Any, name: str) -> None:
    """Theirs resizes a Pillow image too, so what differs is float32 rounding of values up to 3."""
    from PIL import Image

    transform = importlib.import_module("torchvision.models").get_model_weights(name).DEFAULT.transforms()
    with Image.open(photograph()) as image:
        expected = transform(image.convert("RGB")).numpy()
    found = prepared(zoo._of_torchvision(transform))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


@slow
@quiet
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "tf_efficientnet_lite0",
        "vit_tiny_patch16_224",
        "resnet50d",
        "convnext_atto",
        "mixer_b16_224",
        "mobilevit_xxs",
    ],
)
def test_timms_own_transform_gives_the_same_pixels(timm: Any, name: str) -> None:
    from PIL import Image

    config = timm.data.resolve_model_data_config(timm.create_model(name, pretrained=False))
    with Image.open(photograph()) as image:
        expected = timm.data.create_transform(**config)(image.convert("RGB")).numpy()
    found = prepared(zoo._of_timm(config))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


@slow
@quiet
@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_name_that_a_zoo_does_not_have_comes_with_the_nearest(timm: Any, kind: str) -> None:
    with pytest.raises(ExportError, match=rf"^{kind} has no network 'resnet1': perhaps .*resnet1"):
        zoo.zoo_source(Recipe(f"{kind}:resnet1"))
    with pytest.raises(ExportError, match=rf"^{kind} has no network 'zzzzzz'\.$"):
        zoo.zoo_source(Recipe(f"{kind}:zzzzzz"))


@slow
@quiet
@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision:resnet18"])
def test_arguments_reach_the_network_or_are_refused_in_one_line(timm: Any, model: str) -> None:
    found: Any = (
        zoo.zoo_source(Recipe(model, model_args=(("num_classes", 7),), shapes=(parse_shape("3x32x32"),))).open().run
    )
    assert found.fc.bias.shape == (7,)
    for name, value in (("nope", 1), ("pretrained" if model.startswith("timm") else "weights", True)):
        with pytest.raises(ExportError, match=rf"^{model} raises TypeError: ") as caught:
            zoo.zoo_source(Recipe(model, model_args=((name, value),)))
        assert "\n" not in str(caught.value)


@slow
@quiet
def test_an_untrained_network_is_the_same_every_time_and_its_answers_vary(timm: Any) -> None:
    import torch

    recipe = Recipe("timm:resnet18", shapes=(parse_shape("3x64x64"),))
    first, second = zoo.zoo_source(recipe), zoo.zoo_source(recipe)
    assert first.identity == second.identity
    assert not first.weights.trained
    a, b = (opened.open().run for opened in (first, second))
    assert isinstance(a, torch.nn.Module)
    assert isinstance(b, torch.nn.Module)
    state = b.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in a.state_dict().items())
    with torch.no_grad():
        answers = a(
            torch.from_numpy(np.stack([prepared(dict(first.preprocessing or {})), np.zeros((3, 64, 64), np.float32)]))
        )
    assert not torch.allclose(answers[0], answers[1])


@slow
@quiet
def test_no_weights_are_fetched_unless_asked_for(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    for model in ("timm:resnet18", "torchvision:resnet18", "torchvision:lraspp_mobilenet_v3_large"):
        zoo.zoo_source(Recipe(model, shapes=(parse_shape("3x64x64"),)))


@slow
@quiet
@pytest.mark.parametrize("model", ["timm:tf_efficientnet_lite0", "torchvision:shufflenet_v2_x0_5"])
def test_a_zoos_network_goes_the_whole_way_from_a_checkpoint(timm: Any, tmp_path: Path, model: str) -> None:
    import torch

    recipe = Recipe(model, "fp16", engine="none", batch=Batch(1, 2, 2), shapes=(parse_shape("3x64x64"),))
    network: Any = zoo.zoo_source(recipe).open().run
    torch.save(network.state_dict(), tmp_path / "w.pth")
    from dataclasses import replace

    bundle = export_model(replace(recipe, weights=str(tmp_path / "w.pth")), tmp_path / "out")
    assert bundle.manifest.weights.origin == "file"
    assert bundle.manifest.model.name == model.replace(":", "-")
    with runtime.load(bundle.path, device="cpu") as session, torch.no_grad():
        inputs = session.preprocess([photograph()])
        expected, found = network(torch.from_numpy(inputs)).numpy(), session.infer(inputs)
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()  # FP16 through 50 layers
        assert len(session.classify(photograph())[0]) == 5
