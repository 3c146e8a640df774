"""The families that follow torchvision's layout: alexnet, googlenet, resnet, vgg."""

import hashlib

import pytest
import torch

from engineworks.models import find
from engineworks.models.googlenet import GoogLeNet, GoogLeNetOutputs
from engineworks.models.weights import build_network

# name: parameters (torchvision's documentation), and the first 16 hex digits of the sha256 over the sorted lines
# "key shape" of torchvision 0.29.1's own state dict: its checkpoints load strictly where this agrees
LAYOUTS = {
    "alexnet": (61_100_840, "935c1ea73a7869ee"),
    "googlenet": (13_004_888, "de3745733576b3b1"),
    "resnet18": (11_689_512, "5191d63ec3989592"),
    "resnet50": (25_557_032, "a87e91cd6bd1f939"),
    "vgg16": (138_357_544, "ba63c2556d912509"),
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


@pytest.mark.parametrize(
    ("layer", "shape"),
    [  # Szegedy et al. 2015, table 1, "output size"
        ("conv1", (64, 112, 112)),
        ("maxpool1", (64, 56, 56)),
        ("maxpool2", (192, 28, 28)),
        ("inception3b", (480, 28, 28)),
        ("maxpool3", (480, 14, 14)),
        ("inception4e", (832, 14, 14)),
        ("maxpool4", (832, 7, 7)),
        ("inception5b", (1024, 7, 7)),
    ],
)
def test_googlenets_maps_have_the_sizes_of_the_paper(layer: str, shape: tuple[int, ...]) -> None:
    network, seen = skeleton("googlenet").eval(), []
    network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(each) for each in seen] == [(1, *shape)]


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


def test_resnet50_strides_in_the_three_by_three() -> None:
    network = skeleton("resnet50")
    first = network.get_submodule("layer2.0")
    strides = [getattr(first.get_submodule(name), "stride") for name in ("conv1", "conv2", "conv3")]  # noqa: B009
    assert strides == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_layer_overwrites_its_input(name: str) -> None:
    """In-place ReLU would spoil the values that layer-by-layer comparisons read."""
    assert not [module for module in skeleton(name).modules() if getattr(module, "inplace", False)]
