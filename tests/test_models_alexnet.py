"""AlexNet as published in 2012: the sizes that the paper states."""

import pytest
import torch
from torch import nn

from engineworks.models import find
from engineworks.models.alexnet import AlexNetPaper


def skeleton() -> AlexNetPaper:
    with torch.device("meta"):
        network = find("alexnet-paper").build()
    assert isinstance(network, AlexNetPaper)
    return network.eval()


def kernels() -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in skeleton().modules() if isinstance(layer, nn.Conv2d)]


def sizes(kind: type[nn.Module]) -> list[tuple[int, ...]]:
    """The sizes of what the layers of a kind give for one image, in order."""
    network, seen = skeleton(), list[tuple[int, ...]]()
    for layer in network.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(tuple(output.shape[1:])))
    network(torch.empty(1, 3, 227, 227, device="meta"))
    return seen


def test_kernels_are_those_of_section_3_5_with_half_the_maps_below_where_the_gpus_do_not_talk() -> None:
    expected = [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    assert kernels() == expected


def test_maps_have_the_neurons_that_the_paper_counts_but_for_the_first_layer() -> None:
    convolutions, dense = sizes(nn.Conv2d), sizes(nn.Linear)
    assert convolutions[0] == (96, 55, 55)  # figure 2; 290,400 neurons, where section 3.5 counts 253,440
    counts = [torch.Size(size).numel() for size in (*convolutions[1:], *dense)]
    assert counts == [186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]  # section 3.5


def test_pooling_overlaps_and_follows_layers_1_2_and_5() -> None:
    pools = [layer for layer in skeleton().modules() if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(3, 2)] * 3  # section 3.4
    assert sizes(nn.MaxPool2d) == [(96, 27, 27), (256, 13, 13), (256, 6, 6)]


def test_normalisation_is_the_formula_of_section_3_3() -> None:
    """Written out for one place, with alpha undivided."""
    norm = next(layer for layer in skeleton().modules() if isinstance(layer, nn.LocalResponseNorm))
    maps = torch.linspace(-150, 150, 12).reshape(1, 12, 1, 1)
    expected = maps.clone()
    for i in range(12):
        near = maps[0, max(0, i - 2) : i + 3, 0, 0]
        expected[0, i] = maps[0, i] / (2 + 1e-4 * float((near**2).sum())) ** 0.75
    torch.testing.assert_close(norm(maps), expected, rtol=1e-5, atol=0)  # float32 sums and a power
    assert float((expected / maps).min()) < 0.4  # at such values it does more than divide by 2 ** 0.75 = 1.68


def test_about_sixty_million_parameters() -> None:
    """The abstract's "60 million"."""
    weights = sum(value.numel() for value in skeleton().parameters())
    assert weights == find("alexnet-paper").parameters
    assert weights == pytest.approx(60e6, rel=0.02)


def test_224_pixels_do_not_give_the_papers_maps() -> None:
    layer = skeleton().features[0]
    assert layer(torch.empty(1, 3, 227, 227, device="meta")).shape[2:] == (55, 55)
    assert layer(torch.empty(1, 3, 224, 224, device="meta")).shape[2:] == (54, 54)
