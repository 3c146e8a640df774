"""Folding batch norm on a trace: the answers stay, a node goes, and what is not a plain pair is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engineworks.export.fold_trace import fold_batch_norms
from engineworks.export.operators import module_rules
from engineworks.export.trace import Traced, trace


class Net(nn.Module):
    """Runs a function on itself."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        for module in self.modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class ByFunction(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)


class Bare(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=self.stride)


def traced(net: nn.Module, *shape: int) -> tuple[Traced, Tensor]:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return trace(net, [x], frozenset(module_rules())), x


PICTURE = (2, 3, 5, 5)
FOLDED: dict[str, tuple[Net, tuple[int, ...]]] = {
    "modules": (Net(lambda n, x: n.b(n.a(x)), a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)), PICTURE),
    "a norm by function": (Net(lambda n, x: n.b(n.a(x)), a=nn.Conv2d(3, 4, 3), b=ByFunction(4)), PICTURE),
    "both by functions": (Net(lambda n, x: n.b(n.a(x)), a=Bare(3, 4, 3, bias=False), b=ByFunction(4)), PICTURE),
    "both by functions, with a bias": (Net(lambda n, x: n.b(n.a(x)), a=Bare(3, 4, 3), b=ByFunction(4)), PICTURE),
    "a linear layer": (Net(lambda n, x: n.b(n.a(x)), a=nn.Linear(3, 4), b=nn.BatchNorm1d(4)), (2, 3)),
    "transposed": (Net(lambda n, x: n.b(n.a(x)), a=nn.ConvTranspose2d(3, 4, 3), b=nn.BatchNorm2d(4)), PICTURE),
    "without weights": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4, affine=False)), PICTURE,
    ),
    "behind sizes that are computed": (
        Net(lambda n, x: n.b(n.a(F.pad(x, (0, x.shape[-1] % 2)))), a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)), PICTURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDED)
def test_a_pair_becomes_one_and_answers_as_before(what: str) -> None:
    net, shape = FOLDED[what]
    found, x = traced(net, *shape)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert len(fold_batch_norms(found.module, found.values)) == 1
    assert not [n for n in found.module.graph.nodes if n.name == "b" or n.target is F.batch_norm]
    with torch.no_grad():
        right, got = net(x), found.module(x)
    # a sum of 27 terms in another order: √27 roundings of 2⁻²⁴, and cancellation below 32×
    assert float((right - got).abs().max() / right.abs().max()) < 32 * 27**0.5 * 2**-24
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert {"a.weight", "a.bias"} <= {name for name, _ in found.module.named_parameters()}


LEFT: dict[str, tuple[Net, tuple[int, ...]]] = {
    "two readers": (Net(lambda n, x: n.b(y := n.a(x)) + y, a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)), PICTURE),
    "called twice": (Net(lambda n, x: n.b(n.a(n.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.BatchNorm2d(3)), PICTURE),
    "something between": (Net(lambda n, x: n.b(n.a(x).relu()), a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)), PICTURE),
    "weights read elsewhere": (
        Net(lambda n, x: n.b(n.a(x)) * n.a.weight.mean(), a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)), PICTURE,
    ),
    "weights of a function read elsewhere": (
        Net(lambda n, x: n.b(n.a(x)) * n.a.weight.mean(), a=Bare(3, 4, 3), b=ByFunction(4)), PICTURE,
    ),
    "a linear layer on tokens": (Net(lambda n, x: n.b(n.a(x)), a=nn.Linear(3, 4), b=nn.BatchNorm1d(3)), (2, 3, 3)),
    "transposed in groups": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.ConvTranspose2d(3, 6, 3, groups=3), b=nn.BatchNorm2d(6)), PICTURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_a_plain_pair_is_left_alone(what: str) -> None:
    net, shape = LEFT[what]
    found, _ = traced(net, *shape)
    assert not fold_batch_norms(found.module, found.values)


def test_tied_weights_are_folded_for_one_and_kept_for_the_other() -> None:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    net = Net(lambda n, x: n.b(n.a(x)) + n.c(x), a=first, b=nn.BatchNorm2d(3), c=second)
    found, x = traced(net, *PICTURE)
    assert len(fold_batch_norms(found.module, found.values)) == 1
    with torch.no_grad():
        assert torch.allclose(found.module(x), net(x), atol=1e-5)
