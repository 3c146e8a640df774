"""LeNet-5 exactly as published: partial C3, trainable subsampling, scaled tanh, radial basis outputs.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE,
1998, section II-B and appendix A. 60,000 trainable parameters. The outputs are distances: the lowest wins.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

AMPLITUDE: Final = 1.7159  # appendix A: with this and the slope below, f(1) = 1 and f(-1) = -1
SLOPE: Final = 2 / 3

HELD_OUT: Final = 2000  # digits that train_lenet5 kept apart; no official MNIST test set
HELD_OUT_CORRECT: Final = 1970  # of them, by the packaged weights: 98.5 %, standard error 0.27 points

# Table I: which maps of S2 feed each map of C3. Every three neighbours, every four neighbours (both wrap around),
# three sets of four that are no neighbours, and one that takes all.
C3_INPUTS: Final[tuple[tuple[int, ...], ...]] = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The target codes of the output layer: stylised digits of 7 x 12 pixels, # is +1 and . is -1. Drawn for this file after
# the style of the paper's figure 3; the original bitmaps are printed only as a picture there, and these are not a
# pixel-for-pixel copy of it. Rows 0..11 from top to bottom; the last two are room for descenders, as in the figure.
BITMAPS: Final = """
..###..  ...##..  .#####.  .#####.  ....##.  #######  ..####.  #######  .#####.  .#####.
.##.##.  ..###..  ##...##  ##...##  ...###.  ##.....  .##....  ##...##  ##...##  ##...##
##...##  .####..  ##...##  .....##  ..####.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...##..  .....##  .....##  .##.##.  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...##..  ....##.  ..####.  ##..##.  ######.  ######.  ....##.  .#####.  .######
##...##  ...##..  ...##..  .....##  #######  .....##  ##...##  ...##..  ##...##  .....##
##...##  ...##..  ..##...  .....##  ....##.  .....##  ##...##  ...##..  ##...##  .....##
##...##  ...##..  .##....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...##..  ##.....  ##...##  ....##.  ##...##  ##...##  ..##...  ##...##  ....##.
..###..  .######  #######  .#####.  ....##.  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""


def bitmaps() -> Tensor:
    """Read the target codes: ``(10, 84)`` float32 of +1 and -1, each a 7 x 12 bitmap row by row."""
    rows = [line.split() for line in BITMAPS.strip().splitlines()]
    pixels = [[1.0 if sign == "#" else -1.0 for row in rows for sign in row[digit]] for digit in range(10)]
    return torch.tensor(pixels, dtype=torch.float32, device="cpu")


def _uniform(weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    """Draw from +-2.4 / fan-in (appendix A)."""
    with torch.no_grad():
        weight.uniform_(-2.4 / fan_in, 2.4 / fan_in, generator=generator)


class Squash(nn.Module):
    """The squashing function A tanh(S a) (equation 6)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape, into (-1.7159, 1.7159)."""
        return AMPLITUDE * torch.tanh(SLOPE * x)


class Subsampling(nn.Module):
    """Add each 2x2 block, multiply by a trainable coefficient, add a trainable bias; one pair for each map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.average = nn.AvgPool2d(2)  # a quarter of the sum: forward multiplies by four
        self.coefficient = nn.Parameter(torch.empty(maps, 1, 1))
        self.bias = nn.Parameter(torch.empty(maps, 1, 1))
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Start as the average: coefficient 1/4, bias 0. A coefficient's random sign would only flip its map."""
        nn.init.constant_(self.coefficient, 0.25)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, maps, H, W)`` to ``(N, maps, H / 2, W / 2)``."""
        y: Tensor = self.average(x) * (4 * self.coefficient) + self.bias
        return y


class PartialConv2d(nn.Module):
    """A 5x5 convolution in which each output map sees only some input maps (table I).

    Only connections that exist have weights: ``weight`` is ``(connections, 5, 5)``, output map by output map. A row of
    zeros stands for the connections that do not, and ``places`` lays both out as an ordinary dense kernel, which an
    exporter folds into a constant.
    """

    places: Tensor

    def __init__(self, table: tuple[tuple[int, ...], ...], inputs: int) -> None:
        super().__init__()
        self.table, self.inputs = table, inputs
        connections = [(output, source) for output, sources in enumerate(table) for source in sources]
        absent = len(connections)
        order = {pair: index for index, pair in enumerate(connections)}
        places = [order.get((output, source), absent) for output in range(len(table)) for source in range(inputs)]
        self.weight = nn.Parameter(torch.empty(len(connections), 5, 5))
        self.bias = nn.Parameter(torch.empty(len(table)))
        self.register_buffer("places", torch.tensor(places, device="cpu"), persistent=False)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw each output map's weights by its own fan-in; biases 0."""
        start = 0
        for sources in self.table:
            _uniform(self.weight[start : start + len(sources)], 25 * len(sources), generator)
            start += len(sources)
        nn.init.zeros_(self.bias)

    def kernel(self) -> Tensor:
        """Lay the weights out densely: ``(outputs, inputs, 5, 5)``, 0 where there is no connection."""
        padded = nn.functional.pad(self.weight, (0, 0, 0, 0, 0, 1))
        return padded[self.places].reshape(len(self.table), self.inputs, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H - 4, W - 4)``."""
        return nn.functional.conv2d(x, self.kernel(), self.bias)


class RadialBasis(nn.Module):
    """Squared distance to fixed codes: y_i = sum_j (x_j - w_ij)^2 (equation 7)."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, J)`` to ``(N, codes)`` distances, all >= 0."""
        difference = x.unsqueeze(1) - self.codes
        return (difference * difference).sum(2)


class LeNet5(nn.Module):
    """C1, S2, C3, S4, C5, F6 and the radial basis outputs of figure 2."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c1_squash = nn.Conv2d(1, 6, 5), Squash()
        self.s2, self.s2_squash = Subsampling(6), Squash()
        self.c3, self.c3_squash = PartialConv2d(C3_INPUTS, 6), Squash()
        self.s4, self.s4_squash = Subsampling(16), Squash()
        self.c5, self.c5_squash = nn.Conv2d(16, 120, 5), Squash()
        self.f6, self.f6_squash = nn.Linear(120, 84), Squash()
        self.output = RadialBasis(bitmaps())

    def forward(self, image: Tensor) -> Tensor:
        """Measure how far each image is from each digit.

        Args:
            image: ``(N, 1, 32, 32)`` float32, background -0.1, ink 1.175.

        Returns:
            ``(N, 10)`` float32 distances, >= 0; the lowest wins.
        """
        x = self.s2_squash(self.s2(self.c1_squash(self.c1(image))))
        x = self.s4_squash(self.s4(self.c3_squash(self.c3(x))))
        x = torch.flatten(self.c5_squash(self.c5(x)), 1)
        distances: Tensor = self.output(self.f6_squash(self.f6(x)))
        return distances


def initialise_as_published(network: LeNet5, generator: torch.Generator) -> None:
    """Start training as the paper does: uniform in +-2.4 / fan-in, biases 0 (appendix A)."""
    for module in network.modules():
        if isinstance(module, Subsampling | PartialConv2d):
            module.initialise(generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            _uniform(module.weight, module.weight[0].numel(), generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def lenet5() -> LeNet5:
    """Build LeNet-5 for the ten digits."""
    return LeNet5()
