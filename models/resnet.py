"""Residual networks, as torchvision lays them out, so that its checkpoints load strictly; as published; and plain ones.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3 and table 1. Down-sampling
shortcuts are 1x1 projections (option B of section 4.1). The bottleneck strides in its 3x3 convolution; that of
``_paper`` in the first 1x1, as the authors' own networks do. ``plain18`` and ``plain34`` are the paper's counterparts
without shortcuts.

Table 1's multiply-adds, 1.8, 3.6, 3.8, 7.6 and 11.3 x 10^9, are met by 1.81, 3.66, 3.86, 7.57 and 11.28: 3.6 and 3.8
look cut off where 7.6 and 11.3 are rounded. 3.6 is also what the 34 layers cost plain, or with option A (section 4.1),
whose shortcuts are free: 3.64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RESIDUAL_GAIN = 0.25
"""Where the last batch norm of a block starts. At 1, fifty untrained layers multiply every rounding error until an
FP16 run keeps 30 dB of the answers; at 0 (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1) a fault in
a block would change nothing; at a quarter 55 dB are kept, and every block has its say."""


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Project where the shape changes; None where the identity serves."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Start the residual branch small (``RESIDUAL_GAIN``); nothing is drawn."""
        nn.init.constant_(self.bn2.weight, RESIDUAL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu2(y + shortcut)
        return result


class PlainBlock(nn.Module):
    """Two 3x3 convolutions and no shortcut (figure 3, middle)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        result: Tensor = self.relu2(self.bn2(self.conv2(y)))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (figure 5, right); the stride is in the 3x3."""

    expansion = 4
    stride_in_3x3 = True

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        first, second = (1, stride) if self.stride_in_3x3 else (stride, 1)
        self.conv1 = _convolution(inputs, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(width, width, 3, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = _convolution(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Start the residual branch small (``RESIDUAL_GAIN``); nothing is drawn."""
        nn.init.constant_(self.bn3.weight, RESIDUAL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, 4 width, H / stride, W / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu3(y + shortcut)
        return result


class PaperBottleneck(Bottleneck):
    """The bottleneck whose stride is in the first 1x1: the same weights, fewer multiply-adds."""

    stride_in_3x3 = False


Block = type[BasicBlock | PlainBlock | Bottleneck]


def _stage(block: Block, inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(count - 1)))


class ResNet(nn.Module):
    """A stem, four stages of blocks and a classifier (table 1)."""

    def __init__(self, block: Block, counts: tuple[int, int, int, int], classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, counts[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Score images.

        Args:
            image: ``(N, 3, H, W)`` float32, normalised; any H and W, 224 as published.

        Returns:
            ``(N, classes)`` float32 logits.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet18(num_classes: int = 1000) -> ResNet:
    """Build ResNet-18, by default for the 1000 classes of ImageNet; 11,689,512 parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes=num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """Build ResNet-34, by default for the 1000 classes of ImageNet; 21,797,672 parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes=num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """Build ResNet-50, by default for the 1000 classes of ImageNet; 25,557,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes=num_classes)


def resnet101(num_classes: int = 1000) -> ResNet:
    """Build ResNet-101, by default for the 1000 classes of ImageNet; 44,549,160 parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), classes=num_classes)


def resnet152(num_classes: int = 1000) -> ResNet:
    """Build ResNet-152, by default for the 1000 classes of ImageNet; 60,192,808 parameters."""
    return ResNet(Bottleneck, (3, 8, 36, 3), classes=num_classes)


def resnet50_paper(num_classes: int = 1000) -> ResNet:
    """Build ResNet-50 as published, with the stride in the first 1x1; 25,557,032 parameters."""
    return ResNet(PaperBottleneck, (3, 4, 6, 3), classes=num_classes)


def resnet101_paper(num_classes: int = 1000) -> ResNet:
    """Build ResNet-101 as published, with the stride in the first 1x1; 44,549,160 parameters."""
    return ResNet(PaperBottleneck, (3, 4, 23, 3), classes=num_classes)


def resnet152_paper(num_classes: int = 1000) -> ResNet:
    """Build ResNet-152 as published, with the stride in the first 1x1; 60,192,808 parameters."""
    return ResNet(PaperBottleneck, (3, 8, 36, 3), classes=num_classes)


def plain18(num_classes: int = 1000) -> ResNet:
    """Build the plain network of 18 layers: ResNet-18 without shortcuts or projections; 11,515,688 parameters."""
    return ResNet(PlainBlock, (2, 2, 2, 2), classes=num_classes)


def plain34(num_classes: int = 1000) -> ResNet:
    """Build the plain network of 34 layers: ResNet-34 without shortcuts or projections; 21,623,848 parameters."""
    return ResNet(PlainBlock, (3, 4, 6, 3), classes=num_classes)
