"""Random weights that behave like trained ones: every layer's output has mean 0 and spread 1, whatever the depth.

With torch's own initialisation a deep network answers every image alike, and then every export looks right: no fault
in it can change the outputs. So weights are drawn for ReLU (He et al., "Delving Deep into Rectifiers", ICCV 2015,
section 2.2), and one pass over synthetic images then fills the statistics of batch normalisation and, in layers that
have a bias instead, sets scale and bias from the data (Salimans, Kingma, "Weight Normalization", NIPS 2016, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

OCTAVES = (2, 8, 32)  # sizes of the noise that makes an image's coarse content; the finest is the image's own size
SMALLEST_SPREAD = 1e-6  # below this a layer is constant over the batch, and dividing by it would only blow up noise


@runtime_checkable
class DrawsItself(Protocol):
    """A module that knows how its own parameters start."""

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Set the parameters, drawing from ``generator`` alone."""
        ...


def initialise(
    module: nn.Module, shape: tuple[int, int, int], seed: int, *, batch: int = 6, spread: float = 1.0
) -> None:
    """Draw all weights from a seed, run one pass that fits scales and statistics, and leave the module in evaluation.

    Args:
        module: the network; parameters and buffers on the meta device are given storage on the CPU.
        shape: (C, H, W) of its input.
        seed: same seed, same weights; batch statistics and fitted scales may differ in the last bits between machines.
            The global random state is not touched.
        batch: how many synthetic images the pass sees, at least 2.
        spread: their standard deviation, about; that of the inputs which the network is meant for.
    """
    generator = torch.Generator().manual_seed(seed)
    materialise(module)
    draw(module.modules(), generator)
    with torch.no_grad(), _fitting(module):
        images = synthetic_images(batch, shape, generator).mul_(spread)
        module(images.contiguous(memory_format=torch.channels_last))  # half the time of NCHW on a CPU


def materialise(module: nn.Module) -> list[nn.Module]:
    """Give every parameter and buffer on the meta device storage on the CPU, its values not yet set.

    Returns:
        The modules that own one of them: what ``draw`` has to fill.
    """
    owners = []
    for part in module.modules():
        parameters = [(name, value) for name, value in part.named_parameters(recurse=False) if value.is_meta]
        buffers = [(name, value) for name, value in part.named_buffers(recurse=False) if value.is_meta]
        for name, parameter in parameters:
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)  # empty_like of a meta tensor imports sympy
            setattr(part, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in buffers:
            setattr(part, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        if parameters or buffers:
            owners.append(part)
    return owners


@torch.no_grad()
def draw(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    """Fill the parameters that these modules own themselves: uniform with variance 2 / fan-in, biases 0.

    Inner modules come first, so that one which knows how its parts should start has the last word.
    """
    for part in reversed(list(modules)):
        if isinstance(part, DrawsItself):
            part.initialise(generator)
        elif isinstance(part, _BatchNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d | nn.Linear):
            bound = (6 / part.weight[0].numel()) ** 0.5
            part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                part.bias.zero_()


def synthetic_images(batch: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw a batch whose first half looks like photographs to a filter, and whose second half is white noise.

    In the first, coarse and fine content weigh alike (a spectrum near 1/f, as photographs have it). A network fitted to
    both kinds tells images of either apart.

    Returns:
        ``(batch, C, H, W)`` float32, mean about 0 and spread about 1.
    """
    channels, height, width = shape
    images = torch.randn(batch, channels, height, width, generator=generator)
    half = images[: (batch + 1) // 2]
    for size in OCTAVES:
        coarse = torch.randn(len(half), channels, size, size, generator=generator)
        half += nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    half.sub_(half.mean()).div_(half.std())
    return images


@contextmanager
def _fitting(module: nn.Module) -> Iterator[None]:
    """Let the next pass set batch norm's statistics from that batch alone, and fit the layers that have a bias."""
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [part.momentum for part in norms]
    biased = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None]
    hooks = [part.register_forward_hook(_fit) for part in biased]
    try:
        for part in norms:
            part.reset_running_stats()
            part.momentum = None  # a cumulative average: after one batch, that batch
            part.train()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum
        module.eval()


def _fit(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Move each output channel to mean 0 and the layer to spread 1, in its weights, and in this output too.

    A linear layer on other than rows (tokens, channels last) is left as it is: its channels are not the second axis.
    """
    if isinstance(layer, nn.Linear) and output.dim() != 2:
        return output
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    others = [axis for axis in range(output.dim()) if axis != 1]
    variance, mean = torch.var_mean(output, others, keepdim=True)
    scale = 1 / variance.mean().sqrt().clamp_min(SMALLEST_SPREAD)
    weight.mul_(scale)
    bias.copy_((bias - mean.flatten()) * scale)
    return (output - mean) * scale
