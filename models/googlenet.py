"""GoogLeNet with batch normalisation, as torchvision lays it out, so that its checkpoint loads strictly.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 5, table 1 and figure 3. Three things differ from
the paper, as in the published checkpoint: batch normalisation (eps 1e-3) after every convolution stands for local
response normalisation, the "5x5" branch convolves 3x3, and poolings round their output size up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class GoogLeNetOutputs(NamedTuple):
    """What GoogLeNet returns in training mode: each ``(N, classes)`` float32 logits (section 5)."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class BasicConv2d(nn.Module):
    """A convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H', W')``, all values >= 0."""
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class Inception(nn.Module):
    """Four branches side by side, joined along the channels (figure 2b).

    The numbers are those of table 1's columns: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
    """

    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(inputs, one, 1)
        self.branch2 = nn.Sequential(BasicConv2d(inputs, three[0], 1), BasicConv2d(three[0], three[1], 3, padding=1))
        self.branch3 = nn.Sequential(BasicConv2d(inputs, five[0], 1), BasicConv2d(five[0], five[1], 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, one + three[1] + five[1] + pool, H, W)``."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """A classifier on an inner layer, there to send gradients back in training (section 5)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((4, 4))
        self.conv = BasicConv2d(inputs, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, 14, 14)`` to ``(N, classes)`` logits."""
        y = torch.flatten(self.conv(self.pool(x)), 1)
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(y))))
        return logits


class GoogLeNet(nn.Module):
    """Nine inception modules; 6,624,904 parameters at 1000 classes, 13,004,888 with the two auxiliary classifiers."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.aux1 = Auxiliary(512, classes)
        self.aux2 = Auxiliary(528, classes)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)

    def forward(self, image: Tensor) -> Tensor | GoogLeNetOutputs:
        """Score images.

        Args:
            image: ``(N, 3, H, W)`` float32, normalised; H and W at least 15, 224 as published.

        Returns:
            In evaluation ``(N, classes)`` float32 logits; in training ``GoogLeNetOutputs``.
        """
        x = self.maxpool1(self.conv1(image))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        inner1 = self.inception4a(x)
        inner2 = self.inception4d(self.inception4c(self.inception4b(inner1)))
        x = self.maxpool4(self.inception4e(inner2))
        x = self.inception5b(self.inception5a(x))
        x = torch.flatten(self.avgpool(x), 1)
        logits: Tensor = self.fc(self.dropout(x))
        return GoogLeNetOutputs(logits, self.aux2(inner2), self.aux1(inner1)) if self.training else logits


def googlenet() -> GoogLeNet:
    """Build GoogLeNet for the 1000 classes of ImageNet, with its auxiliary classifiers."""
    return GoogLeNet()
