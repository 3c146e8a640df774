"""The families that follow torchvision's layout: alexnet, googlenet, resnet, vgg."""

import hashlib

import pytest
import torch

from engineworks.models import NETWORKS, find
from engineworks.models.googlenet import GoogLeNet, GoogLeNetOutputs
from engineworks.models.weights import build_network

# name: parameters (torchvision's documentation), and the first 16 hex digits of the sha256 over the sorted lines
# "key shape" of torchvision 0.29.1's own state dict: its checkpoints load strictly where this agrees
LAYOUTS = {
    "alexnet": (61_100_840, "935c1ea73a7869ee"),
    "googlenet": (13_004_888, "de3745733576b3b1"),
    "resnet18": (11_689_512, "5191d63ec3989592"),
    "resnet34": (21_797_672, "f8de2a1812ef85e4"),
    "resnet50": (25_557_032, "a87e91cd6bd1f939"),
    "resnet101": (44_549_160, "dbc3ca74fffafc72"),
    "resnet152": (60_192_808, "7d486dbdc941506e"),
    "vgg11": (132_863_336, "b11acd4f90d9643f"),
    "vgg11_bn": (132_868_840, "56ed5816909a8132"),
    "vgg13": (133_047_848, "79ca8fd7a1480aa7"),
    "vgg13_bn": (133_053_736, "e4f52ce016e5e82f"),
    "vgg16": (138_357_544, "ba63c2556d912509"),
    "vgg16_bn": (138_365_992, "86bad13b66635552"),
    "vgg19": (143_667_240, "393fac8b08b63fbe"),
    "vgg19_bn": (143_678_248, "faf0fdbb92f698c6"),
}


def skeleton(name: str) -> torch.nn.Module:
    """Build without memory for the weights."""
    with torch.device("meta"):
        return find(name).build()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_state_dict_has_torchvisions_names_and_shapes(name: str) -> None:
    state = skeleton(name).state_dict()
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == LAYOUTS[name][1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parameters_count_what_is_published(name: str) -> None:
    assert sum(parameter.numel() for parameter in skeleton(name).parameters()) == LAYOUTS[name][0]


def test_googlenet_without_its_auxiliary_heads_counts_what_is_published() -> None:
    named = skeleton("googlenet").named_parameters()
    assert sum(value.numel() for key, value in named if not key.startswith("aux")) == 6_624_904


def test_googlenet_normalises_with_eps_a_thousandth_throughout() -> None:
    norms = [module for module in skeleton("googlenet").modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 59
    assert {norm.eps for norm in norms} == {1e-3}


def test_googlenet_answers_with_one_tensor_in_evaluation_and_three_in_training() -> None:
    network = GoogLeNet(classes=7)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained = network.train()(images)
        answer = network.eval()(images)
    assert isinstance(trained, GoogLeNetOutputs)
    assert [tuple(each.shape) for each in trained] == [(2, 7)] * 3
    assert tuple(answer.shape) == (2, 7)


def test_googlenets_auxiliary_heads_have_no_say_in_evaluation() -> None:
    network = build_network(find("googlenet"))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = network(images)
    for name, value in network.named_parameters():
        if name.startswith("aux"):
            value.fill_(float("nan"))
    assert torch.equal(network(images), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_registrys_parameters_are_those_that_evaluation_uses(name: str) -> None:
    named = [(key, value.numel()) for key, value in skeleton(name).named_parameters()]
    heads = find(name).optional_keys
    assert sum(count for key, count in named if not key.startswith(heads)) == find(name).parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_overwrites_its_input(name: str) -> None:
    """In-place ReLU would spoil the values that layer-by-layer comparisons read."""
    assert not [module for module in skeleton(name).modules() if getattr(module, "inplace", False)]
