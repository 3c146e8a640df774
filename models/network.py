"""What is known of a reference network: its figures, its input, its labels, and how to build it.

Nothing here imports torch before ``Network.build``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent


class Preprocessing(TypedDict):
    """How an image becomes a network's input; plain JSON, in this order.

    The image is converted to ``mode``; resized (an int is the shorter side, a pair is height and width, None leaves
    the size); the centre ``crop`` (height, width) is taken; ``pad`` pixels of 0 are put on each of the four sides.
    Then, in float32 and channel by channel, value / 255, minus ``mean``, divided by ``std``, laid out CHW.
    """

    mode: Literal["RGB", "L"]
    resize: int | list[int] | None
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"]
    crop: list[int] | None
    pad: int
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Published:
    """Weights that their authors published, and what they said of them.

    ``sha256`` holds the leading hex digits that are known (torchvision names its files by the first eight);
    ``bytes`` is the exact size where it is known; ``top1`` and ``top5`` are per cent on ImageNet's validation set as
    the source states them, one centre crop. ``preprocessing`` replaces the network's own where it is not None.
    """

    url: str
    sha256: str
    licence: str
    top1: float
    top5: float
    source: str
    bytes: int | None = None
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Network:
    """A reference network.

    ``builder`` is ``module:function``, resolved by ``build``; ``input_shape`` is (channels, height, width);
    ``scores`` says how outputs rank: the highest of "logits" wins, the lowest of "distances"; ``shipped`` names a
    packaged safetensors file; ``optional_keys`` are prefixes that a checkpoint may lack or have.
    ``label_source`` is the labels themselves or the packaged text file that holds them, one a line.
    ``parameters`` are those that evaluation uses: auxiliary classifiers are not among them. ``multiply_adds`` are those
    of the convolutions and matrix products of the exported graph for one image of ``input_shape``, biases not counted.
    ``input_spread`` is the standard deviation, about, of its inputs: random weights are drawn to suit it.
    ``arguments`` are keyword arguments for the builder, such as ``num_classes``.
    """

    name: str
    family: str
    paper: str
    builder: str
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    label_source: str | tuple[str, ...]
    parameters: int
    multiply_adds: int
    scores: Literal["logits", "distances"] = "logits"
    published: Published | None = None
    shipped: str | None = None
    optional_keys: tuple[str, ...] = ()
    input_spread: float = 1.0
    arguments: tuple[tuple[str, Any], ...] = ()

    def build(self) -> torch.nn.Module:
        """Build the network with torch's own random weights, in training mode.

        ``engineworks.models.weights.build_network`` is the faster way to one that is ready to run.
        """
        module, _, function = self.builder.partition(":")
        built: torch.nn.Module = getattr(importlib.import_module(module), function)(**dict(self.arguments))
        return built

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, in the order of the network's outputs; read when first asked for."""
        return _read_labels(self.label_source) if isinstance(self.label_source, str) else self.label_source

    @property
    def shipped_path(self) -> Path | None:
        """The packaged checkpoint, or None where no weights come with the package."""
        return HERE / self.shipped if self.shipped else None


@cache
def _read_labels(file: str) -> tuple[str, ...]:
    return tuple((HERE / file).read_text(encoding="utf-8").splitlines())
