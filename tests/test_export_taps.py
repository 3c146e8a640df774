"""The original under the graph's names: whole, alone, rounded, and with what its sums are made of."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engineworks.export.prove import export_graph
from engineworks.export.recipe import Recipe
from engineworks.export.taps import Taps


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5))
    nn.init.normal_(made[1].weight)  # type: ignore[arg-type]
    return made.eval()


X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def taps(module: nn.Module, route: Any = "fx") -> Taps:
    found = export_graph(module, {"x": X}, ("y",), Recipe("net.py:net", route=route)).taps
    assert found is not None
    return found


def exact(found: Taps, given: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    found.exact([torch.from_numpy(X)], lambda name, value: seen.update({name: value.clone()}), given)
    return seen


def test_each_value_is_the_module_s_own_and_the_norm_s_stands_under_its_layer() -> None:
    module = net()
    seen = exact(taps(module))
    value: torch.Tensor = torch.from_numpy(X)
    values = []
    with torch.no_grad():
        for layer in module:  # type: ignore[attr-defined]
            value = layer(value.clone())
            values.append(value.clone())
    for name, right in zip(["_0", "_2", "_3", "_4"], values[1:], strict=True):
        assert torch.equal(seen[name], right), name
    assert "_1" not in seen


def test_a_layer_after_a_given_value_reads_that() -> None:
    module = net()
    zeros = torch.zeros(2, 8, 6, 6)
    seen = exact(taps(module), {"_2": zeros})
    assert torch.equal(seen["_4"], module[4].bias.detach().expand(2, 5))  # type: ignore[index]
    assert seen["_2"].abs().sum() > 0  # what PyTorch makes of it is shown all the same
    assert not zeros.any()


@pytest.mark.slow
def test_a_program_has_the_same_values_by_its_own_names() -> None:
    module = net()
    seen = exact(taps(module, "dynamo"))
    with torch.no_grad():
        answer = module(torch.from_numpy(X))
    assert torch.allclose(seen[taps(module, "dynamo").outputs()[0]], answer, atol=1e-5)


def test_sums_are_as_long_as_kernels_and_know_their_weights() -> None:
    module = net()
    found, seen = taps(module), exact(taps(module))
    sums = found.sums("_4", seen["_4"], seen["_3"], {})
    assert sums.terms == 288
    assert sums.lengths is not None and torch.allclose(sums.lengths, module[4].weight.norm(dim=1))  # type: ignore[index]
    folded = found.sums("_0", seen["_0"], torch.from_numpy(X), {})
    gain = (module[1].weight / (module[1].running_var + 1e-5).sqrt()).abs()  # type: ignore[index]
    right = module[0].weight.flatten(1).norm(dim=1) * gain  # type: ignore[index]
    assert folded.terms == 27 and folded.lengths is not None and torch.allclose(folded.lengths, right, rtol=1e-5)


def test_a_transposed_layer_s_lengths_are_its_output_channels() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval()
    found = taps(module)
    sums = found.sums("_1", torch.zeros(2, 6, 10, 10), torch.zeros(2, 4, 8, 8), {})
    weight = layer.weight.detach()  # (in, out / groups, 3, 3)
    right = [weight[2 * (c // 3) : 2 * (c // 3) + 2, c % 3].norm() for c in range(6)]
    assert sums.lengths is not None and torch.allclose(sums.lengths, torch.stack(right))


@pytest.mark.slow
def test_a_program_s_weights_are_numbers_and_no_part_of_a_gradient() -> None:
    found = taps(net(), "dynamo")
    seen: dict[str, torch.Tensor] = {}
    found.exact([torch.from_numpy(X)], lambda name, value: seen.update({name: value}))
    weights = {name: seen[name] for name in found.read_as_weights() if name in seen}
    layers = [name for name, read, _ in found.layers() if weights.keys() & set(read)]
    sums = [found.sums(name, seen[name], None, weights) for name in layers]
    assert len(sums) == 2
    assert all(each.lengths is not None and not each.lengths.requires_grad for each in sums)
    assert all(each.bias is None or not each.bias.requires_grad for each in sums)
