"""AlexNet in one tower, as torchvision lays it out, so that its checkpoint loads strictly.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, section 5: the network of
Krizhevsky, Sutskever, Hinton (NIPS 2012) without its two groups and without local response normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers; 61,100,840 parameters at 1000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Score images.

        Args:
            image: ``(N, 3, H, W)`` float32, normalised; H and W at least 63, 224 as published.

        Returns:
            ``(N, classes)`` float32 logits.
        """
        x = torch.flatten(self.avgpool(self.features(image)), 1)
        logits: Tensor = self.classifier(x)
        return logits


def alexnet() -> AlexNet:
    """Build AlexNet for the 1000 classes of ImageNet."""
    return AlexNet()
