"""Compare our networks with torchvision's: same weights, same inputs, largest difference; strict loading both ways.

``python tests/bench/torchvision_parity.py [NAME...]``; exit status 1 on any disagreement.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from engineworks.models.registry import NETWORKS
from engineworks.models.weights import build_network
from engineworks.models.zoo_import import import_torchvision

torchvision: Any = import_torchvision()[0]

NAMES = (
    "alexnet", "googlenet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
)  # fmt: skip
# float32 sums in the same order on the same kernels: equal, or a few units in the last place of the largest value
TOLERANCE = 1e-6


def rival(name: str) -> nn.Module:
    """Build torchvision's network of this name with the auxiliary heads its checkpoints have."""
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    built: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return built.eval()


def largest_difference(ours: nn.Module, theirs: nn.Module, image: Tensor) -> float:
    """Compare on one batch, relative to the largest output."""
    with torch.no_grad():
        mine, reference = ours(image), theirs(image)
    return float((mine - reference).abs().max() / reference.abs().max())


def compare(name: str) -> float:
    """Load ours into theirs and theirs into ours, both strictly, and compare at batches 1 and 2."""
    ours, theirs = build_network(NETWORKS[name], seed=1), rival(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(2)
    return max(
        largest_difference(ours, theirs, torch.randn(batch, 3, side, side, generator=generator))
        for batch, side in ((1, 224), (2, 224), (1, 193))
    )


def main(names: list[str]) -> int:
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    failed = False
    for name in names or NAMES:
        difference = compare(name)
        failed |= difference > TOLERANCE
        print(f"{name:10} strict both ways; largest difference {difference:.1e} of the largest output")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
