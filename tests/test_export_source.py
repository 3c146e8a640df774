"""Where weights come from, known before torch is imported."""

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engineworks.export import source
from engineworks.export.inputs import InputSpec, parse_shape
from engineworks.export.recipe import Recipe
from engineworks.models import NETWORKS
from engineworks.models.errors import UnknownModelError, WeightsError
from engineworks.runtime.errors import ExportError


def test_shipped_weights_are_trained_and_carry_their_digest(tmp_path: Path) -> None:
    found = source.resolve(Recipe("lenet5"), tmp_path)
    shipped = NETWORKS["lenet5"].shipped_path
    assert shipped is not None
    assert found.weights.origin == "shipped"
    assert found.weights.trained
    assert found.weights.sha256 == hashlib.sha256(shipped.read_bytes()).hexdigest() == found.identity


def test_a_network_without_weights_is_untrained_and_known_by_its_seed(tmp_path: Path) -> None:
    found = source.resolve(Recipe("resnet18"), tmp_path)
    assert not found.weights.trained
    assert found.identity == "seed 0"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_known_by_its_digest_and_named_without_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "best.pth"
    file.write_bytes(b"weights")
    found = source.resolve(Recipe("resnet18", weights=str(file)), tmp_path)
    assert found.weights.detail == "best.pth"
    assert found.identity == hashlib.sha256(b"weights").hexdigest()


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights \S+/none\.pth: there is no such file"):
        source.resolve(Recipe("resnet18", weights=str(tmp_path / "none.pth")), tmp_path)
    with pytest.raises(WeightsError, match="there is no such file"):
        source.resolve(Recipe("resnet18", weights=str(tmp_path)), tmp_path)


def test_what_was_never_published_is_refused_without_a_look_at_the_network(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--weights imagenet: none were published for lenet5"):
        source.resolve(Recipe("lenet5", weights="imagenet"), tmp_path)


def test_an_unknown_network_comes_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no network is called 'resnet19': did you mean .*resnet18"):
        source.resolve(Recipe("resnet19"), tmp_path)


@pytest.mark.parametrize("name", ["torch", "onnx", "onnxscript", "safetensors"])
def test_a_missing_package_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else real(asked))
    with pytest.raises(ExportError, match=rf'^{name} is not installed.*pip install "engineworks\[export\]"$'):
        source.check_installed(Recipe("lenet5"))


def test_the_published_file_is_known_by_its_digest_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"as published")
    network = NETWORKS["googlenet"]
    assert network.published is not None
    published = replace(network.published, sha256=hashlib.sha256(b"as published").hexdigest()[:8])
    monkeypatch.setitem(NETWORKS, "googlenet", replace(network, published=published))
    made = source.resolve(Recipe("googlenet", weights=str(file)), tmp_path)
    assert made.weights.origin == "published"
    assert made.weights.licence == published.licence
    assert made.preprocessing is not None
    assert made.preprocessing["mean"] == [0.5, 0.5, 0.5]
    file.write_bytes(b"retrained")
    again = source.resolve(Recipe("googlenet", weights=str(file)), tmp_path)
    assert again.preprocessing is not None
    assert again.preprocessing["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(("model", "name"), [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision")])
def test_a_missing_zoo_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch, model: str, name: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else real(asked))
    with pytest.raises(ExportError, match=rf'^{name} is not installed.*pip install "engineworks\[zoo\]"$'):
        source.check_installed(Recipe(model))
    source.check_installed(Recipe("lenet5"))


# --- shapes, arguments and labels of our own networks


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (("3x32x32", "3x32x32"), "lenet5 takes one float32 picture"),
        (("image:1x32x32",), "takes one float32 picture, such as 3x224x224; got image float32"),
        (("1x32x32:uint8",), "got input uint8"),
        (("32",), "got input float32"),
        (("3x32x32",), "lenet5 takes 1 channels, got 3"),
    ],
)
def test_a_shape_that_a_network_of_ours_cannot_have_is_refused(
    tmp_path: Path, shapes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=f"^--shape: .*{message}"):
        source.resolve(Recipe("lenet5", shapes=tuple(map(parse_shape, shapes))), tmp_path)


def test_another_size_brings_the_pictures_shorter_side_to_it(tmp_path: Path) -> None:
    for text, resize in (("3x96x96", 96), ("3x96x64", [96, 64])):
        found = source.resolve(Recipe("resnet18", shapes=(parse_shape(text),)), tmp_path).preprocessing
        assert found is not None
        assert found["resize"] == resize
        assert found["crop"] == [int(side) for side in text.split("x")[1:]]
        assert found["mean"] == [0.485, 0.456, 0.406]


def test_a_size_asked_for_goes_before_the_one_that_follows_from_the_shape(tmp_path: Path) -> None:
    recipe = Recipe("resnet18", shapes=(parse_shape("3x96x96"),), resize=(110, 120), interpolation="bicubic")
    found = source.resolve(recipe, tmp_path).preprocessing
    assert found is not None
    assert (found["resize"], found["crop"], found["interpolation"]) == ([110, 120], [96, 96], "bicubic")


def test_a_changed_number_of_classes_drops_the_labels(tmp_path: Path) -> None:
    found = source.resolve(Recipe("resnet18", model_args=(("num_classes", 7),)), tmp_path)
    assert found.labels == ()
    assert len(source.resolve(Recipe("resnet18"), tmp_path).labels) == 1000


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet", "googlenet"])
def test_a_network_of_ours_is_built_with_as_many_classes_as_asked(tmp_path: Path, name: str) -> None:
    import torch

    network = replace(NETWORKS[name], arguments=(("num_classes", 7),))
    with torch.device("meta"):
        shapes = [tuple(tensor.shape) for tensor in network.build().state_dict().values()]
    assert shapes[-1] == (7,)


def test_an_argument_that_a_network_does_not_take_is_named(tmp_path: Path) -> None:
    found = source.resolve(Recipe("resnet18", model_args=(("colour", "red"),)), tmp_path)
    with pytest.raises(ExportError, match=r"^--model-arg colour: resnet18 does not take that \("):
        found.open()


# --- preprocessing from flags


def own(text: str, **flags: Any) -> dict[str, Any] | None:
    recipe = Recipe("net.py:make", **({"mean": (0.5,), "std": (0.25,)} | flags))
    return source.own_preprocessing(recipe, (parse_shape(text),))


def test_one_mean_stands_for_every_channel_and_three_for_three() -> None:
    colour, grey = own("3x8x9"), own("1x8x8")
    assert colour is not None
    assert grey is not None
    assert (colour["mode"], colour["mean"], colour["std"]) == ("RGB", [0.5] * 3, [0.25] * 3)
    assert (grey["mode"], grey["mean"], grey["std"]) == ("L", [0.5], [0.25])
    assert (colour["crop"], colour["resize"]) == ([8, 9], [8, 9])
    assert (grey["crop"], grey["resize"], grey["pad"], grey["interpolation"]) == ([8, 8], 8, 0, "bilinear")
    three = own("3x8x8", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert three is not None
    assert (three["mean"], three["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_three_means_for_a_grey_picture_are_refused() -> None:
    with pytest.raises(ExportError, match=r"^--mean: the network takes 1 channels, got 3 numbers"):
        own("1x8x8", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.mark.parametrize("text", ["16", "4x8x8", "3x8x8:uint8", "2x3x8x8", "8x8"])
def test_a_mean_for_what_is_no_picture_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match=r"^--mean: expected one float32 picture of 1 or 3 channels"):
        own(text)


def test_a_mean_for_two_inputs_is_refused_and_none_says_nothing() -> None:
    inputs = (InputSpec("a", (3, 8, 8)), InputSpec("b", (3, 8, 8)))
    with pytest.raises(ExportError, match=r"got a float32 \(N, 3, 8, 8\), b float32"):
        source.own_preprocessing(Recipe("net.py:make", mean=(0.5,), std=(0.5,)), inputs)
    assert source.own_preprocessing(Recipe("net.py:make"), inputs) is None


def test_pictures_as_they_are_is_a_word_in_the_preprocessing() -> None:
    made, plain = own("3x8x8", input="uint8"), own("3x8x8")
    assert made is not None
    assert plain is not None
    assert made == plain | {"in_graph": True}


# --- files beside the model


def labels(folder: Path, content: str | bytes) -> Path:
    file = folder / "names.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("content", ["red\ngreen\n", "red\ngreen", "red\r\ngreen\r\n\n\n", "  red \n\tgreen"])
def test_labels_are_the_lines_of_a_file(tmp_path: Path, content: str) -> None:
    assert source.read_labels(labels(tmp_path, content)) == ("red", "green")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1 is empty"),
        ("\n\n", "line 1 is empty"),
        ("red\n\ngreen", "line 2 is empty"),
        ("red\n  \ngreen", "line 2 is empty"),
        (b"\xff\xfe", "expected UTF-8 text"),
    ],
)
def test_a_file_of_labels_with_gaps_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ExportError, match=f"^--labels names.txt: .*{message}"):
        source.read_labels(labels(tmp_path, content))


@pytest.mark.parametrize("flag", ["labels", "samples"])
def test_a_file_beside_the_model_is_part_of_what_it_is_known_by(tmp_path: Path, flag: str) -> None:
    file, seen = labels(tmp_path, "red\ngreen"), set()
    for content in ("red\ngreen", "red\nblue"):
        labels(tmp_path, content)
        seen.add(source.resolve(Recipe("lenet5", **{flag: str(file)}), tmp_path).identity)  # type: ignore[arg-type]
    seen.add(source.resolve(Recipe("lenet5"), tmp_path).identity)
    assert len(seen) == 3
    assert None not in seen


@pytest.mark.parametrize("flag", ["labels", "samples"])
def test_a_file_beside_the_model_that_is_not_there_is_named(tmp_path: Path, flag: str) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ExportError, match=rf"^--{flag} {path}: there is no such file\.$"):
            source.resolve(Recipe("lenet5", **{flag: str(path)}), tmp_path)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_picture_too_small_for_the_poolings_is_named(tmp_path: Path) -> None:
    found = source.resolve(Recipe("alexnet", shapes=(parse_shape("3x4x4"),)), tmp_path)
    with pytest.raises(ExportError, match=r"^--shape: alexnet does not run on \(3, 4, 4\) \("):
        found.open()
