"""GoogLeNet: with batch normalisation, as torchvision lays it out, so that its checkpoint loads strictly; as published.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 5, table 1 and figure 3. Four things differ from
the paper in ``googlenet``, as in the published checkpoint: batch normalisation (eps 1e-3) after every convolution
stands for local response normalisation and biases, the "5x5" branch convolves 3x3, the pooling before module 5a is 2x2,
and the auxiliary classifiers pool to 4x4 whatever the image's size. ``googlenet_paper`` has none of them.
"""

from __future__ import annotations

from functools import partial
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


class PaperConv2d(nn.Module):
    """A convolution with bias, ReLU (section 5: "all the convolutions ... use rectified linear activation")."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H', W')``, all values >= 0."""
        y: Tensor = self.relu(self.conv(x))
        return y


Unit = type[BasicConv2d | PaperConv2d]


class Inception(nn.Module):
    """Four branches side by side, joined along the channels (figure 2b).

    The numbers are those of table 1's columns: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
    """

    def __init__(
        self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int,
        *, unit: Unit = BasicConv2d, kernel: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.branch1 = unit(inputs, one, 1)
        self.branch2 = nn.Sequential(unit(inputs, three[0], 1), unit(three[0], three[1], 3, padding=1))
        self.branch3 = nn.Sequential(unit(inputs, five[0], 1), unit(five[0], five[1], kernel, padding=kernel // 2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), unit(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, one + three[1] + five[1] + pool, H, W)``."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """A classifier on an inner layer, there to send gradients back in training (section 5)."""

    def __init__(self, inputs: int, classes: int, pool: nn.Module, unit: Unit) -> None:
        super().__init__()
        self.pool = pool
        self.conv = unit(inputs, 128, 1)
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

    def __init__(self, classes: int = 1000, *, unit: Unit = BasicConv2d, kernel: int = 3) -> None:
        super().__init__()
        block = partial(Inception, unit=unit, kernel=kernel)
        self.conv1 = unit(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = unit(64, 64, 1)
        self.conv3 = unit(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = block(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = block(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = block(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = block(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = block(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = block(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = block(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = block(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = block(832, 384, (192, 384), (48, 128), 128)
        self.aux1 = Auxiliary(512, classes, nn.AdaptiveAvgPool2d((4, 4)), unit)
        self.aux2 = Auxiliary(528, classes, nn.AdaptiveAvgPool2d((4, 4)), unit)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)

    def stem(self, image: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, 192, H / 8, W / 8)``: all that comes before the first inception module."""
        x = self.maxpool1(self.conv1(image))
        y: Tensor = self.maxpool2(self.conv3(self.conv2(x)))
        return y

    def forward(self, image: Tensor) -> Tensor | GoogLeNetOutputs:
        """Score images.

        Args:
            image: ``(N, 3, H, W)`` float32, normalised; H and W at least 15, 224 as published.

        Returns:
            In evaluation ``(N, classes)`` float32 logits; in training ``GoogLeNetOutputs``.
        """
        x = self.stem(image)
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        inner1 = self.inception4a(x)
        inner2 = self.inception4d(self.inception4c(self.inception4b(inner1)))
        x = self.maxpool4(self.inception4e(inner2))
        x = self.inception5b(self.inception5a(x))
        x = torch.flatten(self.avgpool(x), 1)
        logits: Tensor = self.fc(self.dropout(x))
        return GoogLeNetOutputs(logits, self.aux2(inner2), self.aux1(inner1)) if self.training else logits


class GoogLeNetPaper(GoogLeNet):
    """GoogLeNet as published; 6,998,552 parameters at 1000 classes, 13,378,280 with the two auxiliary classifiers.

    Table 1 disagrees with itself, and with the text, in these places:

    - Its first row has 2.7 thousand weights and 34 million operations; a 7x7 convolution from 3 to 64 maps has 9,408
      weights and 118 million multiply-adds at 112 x 112. Apart from that row its 1.5 x 10^9 operations are met.
    - Its thousands of weights are 1024: the rows' 6.8 million stand for 6.96 x 10^6, and here are 6.99 x 10^6 without
      biases. Of the modules' rows 4c has 7 % too few weights, and 5a 5 % too many, and as many operations too many.
    - It gives the dropout 40 %, but text and table do not say the normalisation's constants: those of Krizhevsky et al.
      (NIPS 2012, section 3.3), 5 maps, alpha 1e-4, beta 0.75, k 2, are taken, alpha undivided as in ``alexnet``'s.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__(classes, unit=PaperConv2d, kernel=5)
        self.norm1 = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        self.norm2 = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        self.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.aux1 = Auxiliary(512, classes, nn.AvgPool2d(5, stride=3), PaperConv2d)
        self.aux2 = Auxiliary(528, classes, nn.AvgPool2d(5, stride=3), PaperConv2d)
        self.dropout = nn.Dropout(0.4)

    def stem(self, image: Tensor) -> Tensor:
        """Normalise after the first pooling and before the second (figure 3)."""
        x = self.norm1(self.maxpool1(self.conv1(image)))
        y: Tensor = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        return y


def googlenet(num_classes: int = 1000) -> GoogLeNet:
    """Build GoogLeNet, by default for the 1000 classes of ImageNet, with its auxiliary classifiers."""
    return GoogLeNet(classes=num_classes)


def googlenet_paper(num_classes: int = 1000) -> GoogLeNetPaper:
    """Build GoogLeNet as published, by default for the 1000 classes of ImageNet.

    Against ``googlenet``: local response normalisation and biases instead of batch normalisation, true 5x5
    convolutions, 3x3 poolings throughout, dropout 40 %, auxiliary classifiers behind 5x5 average pooling, stride 3.
    """
    return GoogLeNetPaper(classes=num_classes)
