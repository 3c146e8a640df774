"""Folding batch norm: the module's answers stay, and what cannot be folded for certain is left alone."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from engineworks.export.fold import fold_batch_norm


def norm(channels: int, kind: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Module:
    """Make a batch norm whose statistics and weights are not the neutral ones."""
    made = kind(channels, **options)
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + (0.5 if "var" in name or name == "weight" else -0.5)
    return made


class Net(nn.Module):
    """Runs a function on itself: ``Net(lambda net, x: net.a(x), a=nn.ReLU())``."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def kinds(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in module.modules() if not list(part.children())]


def difference(module: nn.Module, x: Tensor) -> float:
    """Return the largest relative difference that folding makes."""
    with torch.no_grad():
        exact, folded = module(x), fold_batch_norm(module)(x)
    return float((exact - folded).abs().max() / exact.abs().max().clamp_min(1e-6))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.5]),
    dims=st.integers(1, 3),
    padding_mode=st.sampled_from(["zeros", "circular"]),
)
def test_folding_leaves_the_function_as_it_was(
    seed: int, groups: int, bias: bool, affine: bool, eps: float, dims: int, padding_mode: Any
) -> None:
    torch.manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    net = nn.Sequential(
        conv(4, 8, 3, padding=1, groups=groups, bias=bias, padding_mode=padding_mode),
        norm(8, batch_norm, affine=affine, eps=eps),
        nn.ReLU(),
        nn.Sequential(conv(8, 4, 1, bias=not bias), norm(4, batch_norm, affine=not affine)),
    ).eval()
    folded = fold_batch_norm(net)
    assert not any("BatchNorm" in kind for kind in kinds(folded))
    # a float32 sum of K terms in another order: √K roundings of 2⁻²⁴, K = 4·27 at most, and cancellation below 32×
    assert difference(net, torch.randn(2, 4, *[5] * dims)) < 32 * 108**0.5 * 2**-24


def test_the_original_is_not_touched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded = fold_batch_norm(net)
    folded(torch.randn(1, 3, 5, 5))
    assert kinds(net) == ["Conv2d", "BatchNorm2d"]
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert net[0].weight.requires_grad, "the fold's own copy takes no gradients, the original still does"
    assert not folded.training


def test_nested_modules_are_folded_by_their_path() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 1), norm(4))
    net = Net(
        lambda self, x: self.blocks["a"](self.stem(x)) + x,
        stem=nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4)), nn.ReLU()),
        blocks=nn.ModuleDict({"a": block}),
    )
    assert kinds(fold_batch_norm(net)).count("Identity") == 2
    assert difference(net, torch.randn(2, 4, 5, 5)) < 1e-5


def two_readers(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    return net.norm(y) + y


def once(net: Any, x: Tensor) -> Any:
    return net.norm(net.conv(x))


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda net, x: net.norm(net.other(net.norm(net.conv(x)))), "the batch norm is called twice"),
        (lambda net, x: net.norm(net.conv(net.conv(x))), "the convolution is called twice"),
        (two_readers, "the convolution has two readers"),
        (lambda net, x: net.norm(net.conv(x).relu()), "something stands between"),
        (lambda net, x: net.norm(net.conv(x)) if x.sum() > 1e9 else x, "no trace"),
        (lambda net, x: net.norm(net.conv(x)) + functional.conv2d(x, net.conv.weight), "forward reads the weight"),
        (lambda net, x: net.norm(net.conv(x)) * net.conv.weight.abs().max(), "forward computes with the weight"),
        (lambda net, x: net.norm(net.conv(x)) + net.norm.weight[:, None, None], "forward reads the norm's weight"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_is_not_a_plain_pair_is_left_alone(run: Callable[[Any, Tensor], Any], why: str) -> None:
    net = Net(run, conv=nn.Conv2d(3, 3, 1), other=nn.Conv2d(3, 3, 1), norm=norm(3))
    assert fold_batch_norm(net) is net, why


def test_a_convolution_with_a_hook_is_left_alone() -> None:
    for part in ("conv", "norm"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            net = Net(once, conv=nn.Conv2d(3, 3, 1), norm=norm(3))
            getattr(getattr(net, part), register)(lambda *_: None)
            assert fold_batch_norm(net) is net, f"{register} on {part}"


@pytest.mark.parametrize("home", ["a.users.package", "torch.nn.of.torch.itself"])
def test_a_subclass_of_conv2d_is_left_alone(home: str) -> None:
    class Doubled(nn.Conv2d):
        __module__ = home  # what lives in torch.nn is not traced through

        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    net = Net(once, conv=Doubled(3, 3, 1), norm=norm(3))
    assert fold_batch_norm(net) is net


def test_a_batch_norm_without_statistics_is_left_alone() -> None:
    net = Net(once, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3, track_running_stats=False))
    assert fold_batch_norm(net) is net


def test_a_parametrised_convolution_is_left_alone() -> None:
    net = Net(once, conv=nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)), norm=norm(3))
    assert fold_batch_norm(net.eval()) is net


def test_a_module_that_cannot_be_copied_comes_back_as_it_is() -> None:
    net = Net(once, conv=nn.Conv2d(3, 3, 1), norm=norm(3))
    net.lock = threading.Lock()  # type: ignore[assignment]
    assert fold_batch_norm(net) is net


def test_an_alias_of_a_folded_convolution_keeps_the_old_weights() -> None:
    net = Net(lambda self, x: self.norm(self.conv(x)), conv=nn.Conv2d(3, 3, 1), norm=norm(3))
    net.keep = [net.conv]  # type: ignore[assignment]  # not a child: no name of its own
    assert difference(net, torch.randn(2, 3, 4, 4)) < 1e-5
    assert net.keep[0] is net.conv  # type: ignore[index]


def test_looking_for_pairs_leaves_no_marks_on_the_module() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        net.seen.add_(1)
        net.last = x
        made: Tensor = net.norm(net.conv(x - torch.tensor([0.5])))
        return made

    net = Net(run, conv=nn.Conv2d(3, 3, 1), norm=norm(3))
    net.register_buffer("seen", torch.zeros(1))
    before = set(vars(net))
    fold_batch_norm(net)
    assert set(vars(net)) == before
    assert net.seen == torch.zeros(1)


@pytest.mark.parametrize("twice", ["conv", "bn"])
def test_a_layer_under_two_names_is_left_alone(twice: str) -> None:
    class TwoNames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.norm = norm(4)
            self.other = self.first if twice == "conv" else self.norm

        def forward(self, x: Tensor) -> Tensor:
            conv, bn = (self.other, self.norm) if twice == "conv" else (self.first, self.other)
            y: Tensor = bn(conv(x))
            return y

    assert kinds(fold_batch_norm(TwoNames().eval())).count("BatchNorm2d") == 1


def test_a_batch_norm_whose_mean_was_taken_away_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net[1].running_mean = None  # type: ignore[assignment]
    assert kinds(fold_batch_norm(net)) == kinds(net)
