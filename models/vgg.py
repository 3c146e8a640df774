"""VGG networks, as torchvision lays them out, so that its checkpoints load strictly.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, sections 2.1 and
2.3, table 1. Table 2 gives A and B 133 million parameters, D 138 and E 144, as counted here. ``_bn`` puts batch
normalisation after every convolution, which the paper, older than it, does not have. Configurations A-LRN (section
2.2: "does not improve on" A) and C (1x1 convolutions; no public weights) are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Configuration = tuple[tuple[int, ...], ...]

# Table 1: output channels of each 3x3 convolution, stage by stage; a 2x2 max pooling ends every stage.
A: Configuration = ((64,), (128,), (256, 256), (512, 512), (512, 512))
B: Configuration = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
D: Configuration = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
E: Configuration = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def _stages(configuration: Configuration, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in configuration:
        for outputs in stage:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Stages of 3x3 convolutions and three fully connected layers (section 2.1)."""

    def __init__(self, configuration: Configuration, *, batch_norm: bool = False, classes: int = 1000) -> None:
        super().__init__()
        self.features = _stages(configuration, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(configuration[-1][-1] * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Score images.

        Args:
            image: ``(N, 3, H, W)`` float32, normalised; H and W at least 32, 224 as published.

        Returns:
            ``(N, classes)`` float32 logits.
        """
        x = torch.flatten(self.avgpool(self.features(image)), 1)
        logits: Tensor = self.classifier(x)
        return logits


def vgg11(num_classes: int = 1000) -> VGG:
    """Build VGG-11 (table 1, A), by default for the 1000 classes of ImageNet; 132,863,336 parameters."""
    return VGG(A, classes=num_classes)


def vgg13(num_classes: int = 1000) -> VGG:
    """Build VGG-13 (table 1, B), by default for the 1000 classes of ImageNet; 133,047,848 parameters."""
    return VGG(B, classes=num_classes)


def vgg16(num_classes: int = 1000) -> VGG:
    """Build VGG-16 (table 1, D), by default for the 1000 classes of ImageNet; 138,357,544 parameters."""
    return VGG(D, classes=num_classes)


def vgg19(num_classes: int = 1000) -> VGG:
    """Build VGG-19 (table 1, E), by default for the 1000 classes of ImageNet; 143,667,240 parameters."""
    return VGG(E, classes=num_classes)


def vgg11_bn(num_classes: int = 1000) -> VGG:
    """Build VGG-11 with batch normalisation, which the paper does not have; 132,868,840 parameters."""
    return VGG(A, batch_norm=True, classes=num_classes)


def vgg13_bn(num_classes: int = 1000) -> VGG:
    """Build VGG-13 with batch normalisation, which the paper does not have; 133,053,736 parameters."""
    return VGG(B, batch_norm=True, classes=num_classes)


def vgg16_bn(num_classes: int = 1000) -> VGG:
    """Build VGG-16 with batch normalisation, which the paper does not have; 138,365,992 parameters."""
    return VGG(D, batch_norm=True, classes=num_classes)


def vgg19_bn(num_classes: int = 1000) -> VGG:
    """Build VGG-19 with batch normalisation, which the paper does not have; 143,678,248 parameters."""
    return VGG(E, batch_norm=True, classes=num_classes)
