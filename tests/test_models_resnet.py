"""Residual and plain networks: table 1 of the paper."""

import pytest
import torch
from torch import nn

from engineworks.models import find
from engineworks.models.resnet import BasicBlock, PlainBlock

DEPTHS = {
    "plain18": 18, "plain34": 34, "resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152,
    "resnet50-paper": 50, "resnet101-paper": 101, "resnet152-paper": 152,
}  # fmt: skip
# table 1's last row, in 10^9. Within 2 %: the paper rounds 7.57 to 7.6 but cuts 3.66 to 3.6 and 3.86 to 3.8
MULTIPLY_ADDS = {
    "resnet18": 1.8, "resnet34": 3.6, "resnet50-paper": 3.8, "resnet101-paper": 7.6, "resnet152-paper": 11.3,
}  # fmt: skip


def skeleton(name: str) -> nn.Module:
    with torch.device("meta"):
        return find(name).build().eval()


def projections(network: nn.Module) -> int:
    """Count the parameters on the shortcuts."""
    return sum(value.numel() for name, value in network.named_parameters() if "downsample" in name)


@pytest.mark.parametrize("name", DEPTHS)
def test_every_stage_has_the_output_size_of_table_1(name: str) -> None:
    network, seen = skeleton(name), list[tuple[int, ...]]()
    for layer in ("conv1", "layer1", "layer2", "layer3", "layer4", "avgpool"):
        network.get_submodule(layer).register_forward_hook(
            lambda _layer, _inputs, output: seen.append(tuple(output.shape[1:]))
        )
    network(torch.empty(1, 3, 224, 224, device="meta"))
    widen = 4 if DEPTHS[name] >= 50 else 1
    stages = [(width * widen, side, side) for width, side in ((64, 56), (128, 28), (256, 14), (512, 7))]
    assert seen == [(64, 112, 112), *stages, (512 * widen, 1, 1)]


@pytest.mark.parametrize("name", DEPTHS)
def test_the_depth_counts_the_layers_with_weights_without_projections(name: str) -> None:
    named = skeleton(name).named_modules()
    layers = [part for part, layer in named if isinstance(layer, nn.Conv2d | nn.Linear) and "downsample" not in part]
    assert len(layers) == DEPTHS[name]


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_those_of_table_1(name: str) -> None:
    """The registry's figures, which test_export_count.py holds against the exported graph."""
    assert find(name).multiply_adds / 1e9 == pytest.approx(MULTIPLY_ADDS[name], rel=0.02)


@pytest.mark.parametrize("depth", [18, 34])
def test_a_plain_network_has_its_residual_networks_parameters_less_the_projections(depth: int) -> None:
    plain, residual = skeleton(f"plain{depth}"), skeleton(f"resnet{depth}")
    assert projections(plain) == 0
    count = sum(value.numel() for value in residual.parameters()) - projections(residual)
    assert sum(value.numel() for value in plain.parameters()) == count == find(f"plain{depth}").parameters


def test_plain_34_costs_the_3_6_billion_that_the_paper_states() -> None:
    """Section 3.3; the projections of ResNet-34 come on top: 1x1, from 64, 128, 256 maps to twice as many."""
    plain, residual = find("plain34").multiply_adds, find("resnet34").multiply_adds
    assert plain / 1e9 == pytest.approx(3.6, abs=0.05)
    assert residual - plain == 28**2 * 64 * 128 + 14**2 * 128 * 256 + 7**2 * 256 * 512


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_the_papers_bottleneck_strides_in_the_first_1x1_and_has_the_same_weights(depth: int) -> None:
    ours, paper = skeleton(f"resnet{depth}"), skeleton(f"resnet{depth}-paper")
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (ours, paper)]
    assert shapes[0] == shapes[1]
    for stage in ("layer2", "layer3", "layer4"):
        for network, expected in ((ours, [1, 2, 1]), (paper, [2, 1, 1])):
            convolutions = [network.get_submodule(f"{stage}.0.conv{i}") for i in (1, 2, 3)]
            strides = [layer.stride[0] for layer in convolutions if isinstance(layer, nn.Conv2d)]
            assert strides == expected


def test_shortcuts_are_projections_only_where_the_shape_changes() -> None:
    for name, count in (("resnet18", 3), ("resnet34", 3), ("resnet50", 4), ("resnet152-paper", 4)):
        named = skeleton(name).named_modules()
        assert sum(part.endswith("downsample") for part, layer in named if isinstance(layer, nn.Sequential)) == count


def test_a_plain_block_adds_nothing_to_what_it_computes() -> None:
    """With its second normalisation at zero nothing of the input is left; a residual block hands it on."""
    image = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for block, alive in ((PlainBlock(4, 4, 1), False), (BasicBlock(4, 4, 1), True)):
        nn.init.zeros_(block.bn2.weight)
        assert bool(block.eval()(image).any()) is alive
