"""VGG networks: table 1's layers and table 2's parameters."""

import pytest
import torch
from torch import nn

from engineworks.models import find

# layers with weights (table 1: convolutions + 3), parameters in millions (table 2)
PUBLISHED = {"vgg11": (11, 133), "vgg13": (13, 133), "vgg16": (16, 138), "vgg19": (19, 144)}


def skeleton(name: str) -> nn.Module:
    with torch.device("meta"):
        return find(name).build().eval()


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_with_weights_are_those_of_table_1(name: str, suffix: str) -> None:
    layers = list(skeleton(name + suffix).modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert (len(convolutions), len(dense)) == (PUBLISHED[name][0] - 3, 3)
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions} == {((3, 3), (1, 1), (1, 1))}
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert norms == (len(convolutions) if suffix else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_table_2(name: str) -> None:
    assert round(find(name).parameters / 1e6) == PUBLISHED[name][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stage_halves_the_maps_and_ends_at_7(name: str) -> None:
    network, seen = skeleton(name), list[tuple[int, ...]]()
    for layer in network.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(tuple(output.shape[1:])))
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert seen == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
