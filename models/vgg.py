"""VGG networks, as torchvision lays them out, so that its checkpoints load strictly.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, section 2.1,
table 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Table 1, column D: output channels of each 3x3 convolution, stage by stage; a 2x2 max pooling ends every stage.
D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _stages(configuration: tuple[tuple[int, ...], ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in configuration:
        for outputs in stage:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Stages of 3x3 convolutions and three fully connected layers; D has 138,357,544 parameters at 1000 classes."""

    def __init__(self, configuration: tuple[tuple[int, ...], ...], classes: int = 1000) -> None:
        super().__init__()
        self.features = _stages(configuration)
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


def vgg16() -> VGG:
    """Build VGG-16 (configuration D, no batch normalisation) for the 1000 classes of ImageNet."""
    return VGG(D)
