"""Every reference network by name: what it is, how to build it, what it expects, where its weights are.

Read ``NETWORKS`` or call ``find``; nothing here imports torch before ``Network.build``.

Figures, addresses and digests of published weights were read from the weights enums of torchvision 0.29.1
(``torchvision.models.*_Weights.IMAGENET1K_V1``). ``imagenet.txt`` holds torchvision's names of the 1000 classes in
index order (``torchvision.models._meta``, BSD-3-Clause).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from engineworks.models.errors import UnknownModelError

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
    """

    name: str
    family: str
    paper: str
    builder: str
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    label_source: str | tuple[str, ...]
    scores: Literal["logits", "distances"] = "logits"
    published: Published | None = None
    shipped: str | None = None
    optional_keys: tuple[str, ...] = ()

    def build(self) -> torch.nn.Module:
        """Build the network with torch's own random weights, in training mode.

        ``engineworks.models.weights.build_network`` is the faster way to one that is ready to run.
        """
        module, _, function = self.builder.partition(":")
        built: torch.nn.Module = getattr(importlib.import_module(module), function)()
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


def find(name: str) -> Network:
    """Look a network up by its name.

    Raises:
        UnknownModelError: there is none; the message names the nearest.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    from difflib import get_close_matches

    nearest = tuple(get_close_matches(name.lower(), NETWORKS, n=3, cutoff=0.5))
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(sorted(NETWORKS))}."
    raise UnknownModelError(f"no network is called {name!r}: {hint}", name, nearest)


def _photograph(mean: list[float], std: list[float]) -> Preprocessing:
    """Shorter side 256, centre 224 x 224, normalised: torchvision's ``ImageClassification`` preset."""
    return {
        "mode": "RGB",
        "resize": 256,
        "interpolation": "bilinear",
        "crop": [224, 224],
        "pad": 0,
        "mean": mean,
        "std": std,
    }


IMAGENET = _photograph(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

# torchvision builds GoogLeNet for these weights with transform_input=True, which turns an input normalised as above
# into (value - 0.5) / 0.5, as the original's authors did. Stated here, it costs the graph nothing.
HALVES = _photograph(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])

# LeCun et al. 1998, section II-B: the 28 x 28 digit centred in 32 x 32, white (here 0) -0.1 and black (here 255) 1.175,
# "which makes the mean input roughly 0, and the variance roughly 1". (v - mean) / std = 1.275 v - 0.1.
DIGIT: Preprocessing = {
    "mode": "L",
    "resize": [28, 28],
    "interpolation": "bilinear",
    "crop": None,
    "pad": 2,
    "mean": [0.1 / 1.275],
    "std": [1 / 1.275],
}

LICENCE = (
    "code BSD-3-Clause (torchvision); weights trained on ImageNet, whose terms allow non-commercial research and "
    "educational use only (image-net.org)"
)


def _torchvision(
    file: str, enum: str, top1: float, top5: float, preprocessing: Preprocessing | None = None
) -> Published:
    """Describe a checkpoint of torchvision; its file name ends in the first eight digits of its sha256."""
    return Published(
        url=f"https://download.pytorch.org/models/{file}",
        sha256=Path(file).stem.rpartition("-")[2],
        licence=LICENCE,
        top1=top1,
        top5=top5,
        source=f"torchvision {enum}.IMAGENET1K_V1",
        preprocessing=preprocessing,
    )


def _imagenet(name: str, family: str, paper: str, published: Published, optional_keys: tuple[str, ...] = ()) -> Network:
    return Network(
        name=name,
        family=family,
        paper=paper,
        builder=f"engineworks.models.{family}:{name}",
        input_shape=(3, 224, 224),
        preprocessing=IMAGENET,
        label_source="imagenet.txt",
        published=published,
        optional_keys=optional_keys,
    )


NETWORKS: dict[str, Network] = {
    "alexnet": _imagenet(
        "alexnet",
        "alexnet",
        "Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, section 5 (one tower, "
        "no local response normalisation)",
        _torchvision("alexnet-owt-7be5be79.pth", "AlexNet_Weights", 56.522, 79.066),
    ),
    "googlenet": _imagenet(
        "googlenet",
        "googlenet",
        "Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 5, table 1; with batch normalisation",
        _torchvision("googlenet-1378be20.pth", "GoogLeNet_Weights", 69.778, 89.530, HALVES),
        optional_keys=("aux1.", "aux2."),
    ),
    "lenet5": Network(
        name="lenet5",
        family="lenet5",
        paper="LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, Proceedings "
        "of the IEEE, 1998, section II-B",
        builder="engineworks.models.lenet5:lenet5",
        input_shape=(1, 32, 32),
        preprocessing=DIGIT,
        label_source=tuple("0123456789"),
        scores="distances",
        shipped="lenet5.safetensors",
    ),
    "resnet18": _imagenet(
        "resnet18",
        "resnet",
        "He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section 3.3, table 1",
        _torchvision("resnet18-f37072fd.pth", "ResNet18_Weights", 69.758, 89.078),
    ),
    "resnet50": _imagenet(
        "resnet50",
        "resnet",
        "He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section 4.1, table 1; stride in "
        "the 3x3",
        _torchvision("resnet50-0676ba61.pth", "ResNet50_Weights", 76.130, 92.862),
    ),
    "vgg16": _imagenet(
        "vgg16",
        "vgg",
        "Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, "
        "section 2.1, table 1, configuration D",
        _torchvision("vgg16-397923af.pth", "VGG16_Weights", 71.592, 90.382),
    ),
}
