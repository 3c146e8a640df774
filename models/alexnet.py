"""AlexNet: in one tower, as torchvision lays it out, so that its checkpoint loads strictly; and as first published.

``alexnet`` is the network of Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
section 5. ``alexnet_paper`` is that of Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional
Neural Networks", NIPS 2012, section 3 and figure 2, with its two groups and local response normalisation.
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


def alexnet(num_classes: int = 1000) -> AlexNet:
    """Build AlexNet, by default for the 1000 classes of ImageNet."""
    return AlexNet(classes=num_classes)


def _normalise() -> nn.LocalResponseNorm:
    """Divide by (2 + 1e-4 × sum of squares over 5 neighbouring maps) ^ 0.75 (section 3.3).

    PyTorch and ONNX divide alpha by the number of maps, which the paper's formula does not: hence 5e-4.
    """
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


class AlexNetPaper(nn.Module):
    """Five convolutions and three fully connected layers as published; 60,965,224 parameters at 1000 classes.

    The two GPUs of section 3.5 are groups of convolutions 2, 4 and 5. In three places the paper disagrees with itself:

    - It says 224 x 224 (section 3.5), but kernels of 11 at a stride of 4 make 55 x 55 maps of 227 x 227, unpadded.
    - It counts 253,440 neurons in the first layer; 55 x 55 x 96 are 290,400. Its other counts (186,624, 64,896, 64,896,
      43,264, 4096, 4096, 1000) are exact.
    - The sum of section 3.3 runs over all maps of a layer, of which each GPU holds half. The formula is followed here.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.ReLU(),
            _normalise(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(),
            _normalise(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
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
            image: ``(N, 3, 227, 227)`` float32, the mean subtracted.

        Returns:
            ``(N, classes)`` float32 logits.
        """
        logits: Tensor = self.classifier(torch.flatten(self.features(image), 1))
        return logits


def alexnet_paper(num_classes: int = 1000) -> AlexNetPaper:
    """Build AlexNet as published in 2012, by default for the 1000 classes of ImageNet.

    Against ``alexnet``: 96 to 256 maps in two groups (there 64, 192 in one), local response normalisation, no padding
    in the first layer, 227 x 227 images.
    """
    return AlexNetPaper(classes=num_classes)
