import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import engineworks.models
from engineworks.models import NETWORKS, ModelError, Network, UnknownModelError, find

NAMES = (
    "alexnet", "alexnet-paper", "googlenet", "googlenet-paper", "lenet5", "plain18", "plain34", "resnet101",
    "resnet101-paper", "resnet152", "resnet152-paper", "resnet18", "resnet34", "resnet50", "resnet50-paper", "vgg11",
    "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
)  # fmt: skip


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    script = (
        "import sys, engineworks.models as m; m.find('resnet18').labels; "
        "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_models_import_nothing_of_the_layers_above() -> None:
    folder = Path(engineworks.models.__file__).parent
    found = {
        name
        for file in folder.glob("*.py")
        for name in re.findall(r"^\s*(?:from|import) engineworks\.(\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    assert found == {"models"}


def test_every_public_name_is_there_and_documented() -> None:
    for name in engineworks.models.__all__:
        public = getattr(engineworks.models, name)
        assert isinstance(public, dict) or (public.__doc__ and public.__doc__.strip()), name


def test_the_networks_promised_are_there_under_their_own_names() -> None:
    assert tuple(sorted(NETWORKS)) == NAMES
    assert all(key == network.name for key, network in NETWORKS.items())


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("resnet19", "resnet18"), ("GoogleNet", "googlenet"), ("vgg-16", "vgg16"), ("lenet", "lenet5")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(UnknownModelError, match=rf"no network is called '{asked}': did you mean .*{nearest}") as caught:
        find(asked)
    assert caught.value.name == asked
    assert nearest in caught.value.nearest
    assert isinstance(caught.value, ModelError)


def test_a_name_like_no_other_is_answered_with_all_names() -> None:
    with pytest.raises(UnknownModelError, match=r"known: alexnet, alexnet-paper, googlenet,") as caught:
        find("zzz")
    assert caught.value.nearest == ()


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_survives_json_and_yields_the_input_shape(name: str) -> None:
    network = find(name)
    published = network.published
    recipes = [network.preprocessing]
    if published and published.preprocessing:
        recipes.append(published.preprocessing)
    for recipe in recipes:
        assert json.loads(json.dumps(recipe)) == recipe
        size = recipe["crop"] or recipe["resize"]
        assert isinstance(size, list)
        channels = 3 if recipe["mode"] == "RGB" else 1
        assert (channels, *(side + 2 * recipe["pad"] for side in size)) == network.input_shape
        assert len(recipe["mean"]) == len(recipe["std"]) == channels


def test_lenet5_sees_background_at_minus_a_tenth_and_ink_at_1_175() -> None:
    recipe = find("lenet5").preprocessing
    background, ink = ((value / 255 - recipe["mean"][0]) / recipe["std"][0] for value in (0, 255))
    assert background == pytest.approx(-0.1, abs=1e-12)
    assert ink == pytest.approx(1.175, abs=1e-12)


def test_googlenet_published_preprocessing_equals_transform_input_after_the_usual_one() -> None:
    network = find("googlenet")
    assert network.published is not None
    assert network.published.preprocessing is not None
    usual, folded = network.preprocessing, network.published.preprocessing
    for channel in range(3):
        for value in (0.0, 0.3, 1.0):
            normalised = (value - usual["mean"][channel]) / usual["std"][channel]
            # torchvision 0.29.1, GoogLeNet._transform_input
            transformed = normalised * (usual["std"][channel] / 0.5) + (usual["mean"][channel] - 0.5) / 0.5
            ours = (value - folded["mean"][channel]) / folded["std"][channel]
            assert ours == pytest.approx(transformed, abs=1e-12)


def test_imagenet_has_a_thousand_different_labels_in_index_order() -> None:
    labels = find("vgg16").labels
    assert len(set(labels)) == len(labels) == 1000
    assert (labels[0], labels[281], labels[915], labels[999]) == ("tench", "tabby", "yurt", "toilet tissue")
    assert all(label and label == label.strip() for label in labels)


def test_digits_are_labelled_by_themselves_and_lenet5_alone_ranks_by_distance() -> None:
    assert find("lenet5").labels == tuple("0123456789")
    assert [name for name in NAMES if find(name).scores == "distances"] == ["lenet5"]


def test_published_weights_carry_the_digest_of_their_file_name_and_an_honest_licence() -> None:
    for network in NETWORKS.values():
        if published := network.published:
            assert published.url == f"https://download.pytorch.org/models/{Path(published.url).name}"
            assert re.fullmatch(r"[0-9a-f]{8}", published.sha256)
            assert f"-{published.sha256}.pth" in published.url
            assert "BSD-3-Clause" in published.licence
            assert "non-commercial" in published.licence
            assert 50 < published.top1 < published.top5 < 100


def test_weights_are_published_for_the_layouts_of_torchvision_and_for_them_alone() -> None:
    without = {name for name in NAMES if find(name).published is None}
    assert without == {name for name in NAMES if name.endswith("-paper") or name.startswith(("plain", "lenet"))}


def test_as_published_inputs_keep_their_range_and_lose_their_mean() -> None:
    for name in ("alexnet-paper", "googlenet-paper", "plain18", "resnet50-paper"):
        network = find(name)
        low, high = (
            [(value / 255 - mean) / std for mean, std in zip(recipe["mean"], recipe["std"], strict=True)]
            for recipe in [network.preprocessing]
            for value in (0, 255)
        )
        assert [b - a for a, b in zip(low, high, strict=True)] == pytest.approx([255] * 3)
        assert network.input_spread == pytest.approx(255 * 0.226, rel=0.01)  # what IMAGENET divides by


def test_shipped_weights_are_packaged() -> None:
    shipped = [network.shipped_path for network in NETWORKS.values() if network.shipped_path]
    assert [path.name for path in shipped] == ["lenet5.safetensors"]
    assert shipped[0].stat().st_size <= 300_000


def test_an_entry_cannot_be_changed() -> None:
    network: Network = find("alexnet")
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.name = "other"  # type: ignore[misc]
