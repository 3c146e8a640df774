"""Every reference network by name: what it is, how to build it, what it expects, where its weights are.

Read ``NETWORKS`` or call ``find``; nothing here imports torch before ``Network.build``.

Figures, addresses and digests of published weights were read from the weights enums of torchvision 0.29.1
(``torchvision.models.*_Weights.IMAGENET1K_V1``). ``imagenet.txt`` holds torchvision's names of the 1000 classes in
index order (``torchvision.models._meta``, BSD-3-Clause).
"""

from __future__ import annotations

from pathlib import Path

from engineworks.models.errors import UnknownModelError
from engineworks.models.network import Network, Preprocessing, Published

__all__ = ["NETWORKS", "Network", "Preprocessing", "Published", "find"]


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


def _photograph(mean: list[float], std: list[float], side: int = 224) -> Preprocessing:
    """Shorter side 256, centre square, normalised: torchvision's ``ImageClassification`` preset."""
    return {
        "mode": "RGB",
        "resize": 256,
        "interpolation": "bilinear",
        "crop": [side, side],
        "pad": 0,
        "mean": mean,
        "std": std,
    }


IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET = _photograph(IMAGENET_MEAN, std=[0.229, 0.224, 0.225])

# torchvision builds GoogLeNet for these weights with transform_input=True, which turns an input normalised as above
# into (value - 0.5) / 0.5, as the original's authors did. Stated here, it costs the graph nothing.
HALVES = _photograph(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])

# As published, only the mean is subtracted, and values stay between -128 and 128: Krizhevsky et al. 2012, section 2;
# Szegedy et al. 2015, section 5; He et al. 2016, section 3.4. They subtract a mean image; here it is a mean colour.
PUBLISHED = [1 / 255, 1 / 255, 1 / 255]
PUBLISHED_SPREAD = 58.0  # of such values: 255 times the 0.23 that IMAGENET divides by
MEAN_ONLY = _photograph(IMAGENET_MEAN, PUBLISHED)
MEAN_ONLY_227 = _photograph(IMAGENET_MEAN, PUBLISHED, side=227)

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

OWT = (
    "Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, section 5 (one tower, no local "
    "response normalisation)"
)
ALEXNET = (
    "Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012, "
    "section 3, figure 2"
)
GOOGLENET = "Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 5, table 1"
LENET = (
    "LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE, "
    "1998, section II-B"
)
RESNET = "He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section"
VGG = (
    "Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, section 2.1, "
    "table 1, configuration"
)


def _published(
    name: str, file: str, enum: str, accuracy: tuple[float, float], preprocessing: Preprocessing | None = None
) -> tuple[str, Published]:
    """Describe a checkpoint of torchvision; its file name ends in the first eight digits of its sha256."""
    published = Published(
        url=f"https://download.pytorch.org/models/{file}",
        sha256=Path(file).stem.rpartition("-")[2],
        licence=LICENCE,
        top1=accuracy[0],
        top5=accuracy[1],
        source=f"torchvision {enum}_Weights.IMAGENET1K_V1",
        preprocessing=preprocessing,
    )
    return name, published


_PUBLISHED = dict(
    [
        _published("alexnet", "alexnet-owt-7be5be79.pth", "AlexNet", (56.522, 79.066)),
        _published("googlenet", "googlenet-1378be20.pth", "GoogLeNet", (69.778, 89.530), HALVES),
        _published("resnet18", "resnet18-f37072fd.pth", "ResNet18", (69.758, 89.078)),
        _published("resnet34", "resnet34-b627a593.pth", "ResNet34", (73.314, 91.420)),
        _published("resnet50", "resnet50-0676ba61.pth", "ResNet50", (76.130, 92.862)),
        _published("resnet101", "resnet101-63fe2227.pth", "ResNet101", (77.374, 93.546)),
        _published("resnet152", "resnet152-394f9c45.pth", "ResNet152", (78.312, 94.046)),
        _published("vgg11", "vgg11-8a719046.pth", "VGG11", (69.020, 88.628)),
        _published("vgg11_bn", "vgg11_bn-6002323d.pth", "VGG11_BN", (70.370, 89.810)),
        _published("vgg13", "vgg13-19584684.pth", "VGG13", (69.928, 89.246)),
        _published("vgg13_bn", "vgg13_bn-abd245e5.pth", "VGG13_BN", (71.586, 90.374)),
        _published("vgg16", "vgg16-397923af.pth", "VGG16", (71.592, 90.382)),
        _published("vgg16_bn", "vgg16_bn-6c64b313.pth", "VGG16_BN", (73.360, 91.516)),
        _published("vgg19", "vgg19-dcbb9e9d.pth", "VGG19", (72.376, 90.876)),
        _published("vgg19_bn", "vgg19_bn-c79401a0.pth", "VGG19_BN", (74.218, 91.842)),
    ]
)


def _imagenet(
    name: str, family: str, paper: str, figures: tuple[int, int], preprocessing: Preprocessing = IMAGENET
) -> Network:
    """Describe a network for ImageNet; ``figures`` are its parameters and multiply-adds."""
    crop = preprocessing["crop"]
    assert crop is not None
    return Network(
        name=name,
        family=family,
        paper=paper,
        builder=f"engineworks.models.{family}:{name.replace('-', '_')}",
        input_shape=(3, crop[0], crop[1]),
        preprocessing=preprocessing,
        label_source="imagenet.txt",
        parameters=figures[0],
        multiply_adds=figures[1],
        published=_PUBLISHED.get(name),
        optional_keys=("aux1.", "aux2.") if family == "googlenet" else (),
        input_spread=PUBLISHED_SPREAD if preprocessing["std"] == PUBLISHED else 1.0,
    )


_LENET5 = Network(
    name="lenet5",
    family="lenet5",
    paper=LENET,
    builder="engineworks.models.lenet5:lenet5",
    input_shape=(1, 32, 32),
    preprocessing=DIGIT,
    label_source=tuple("0123456789"),
    parameters=60_000,
    multiply_adds=415_680,
    scores="distances",
    shipped="lenet5.safetensors",
)

_BN = "with batch normalisation, which the paper does not have"
_PLAIN = f"{RESNET} 3.3, figure 3 and table 1; plain, without shortcuts"
_STRIDE_1X1, _STRIDE_3X3 = (f"{RESNET} 4.1, table 1; stride in the {place}" for place in ("first 1x1", "3x3"))

_ALL = (
    _imagenet("alexnet", "alexnet", OWT, (61_100_840, 714_188_480)),
    _imagenet("alexnet-paper", "alexnet", ALEXNET, (60_965_224, 724_406_816), MEAN_ONLY_227),
    _imagenet("googlenet", "googlenet", f"{GOOGLENET}; with batch normalisation", (6_624_904, 1_498_376_192)),
    _imagenet("googlenet-paper", "googlenet", GOOGLENET, (6_998_552, 1_582_671_872), MEAN_ONLY),
    _LENET5,
    _imagenet("plain18", "resnet", _PLAIN, (11_515_688, 1_794_805_760), MEAN_ONLY),
    _imagenet("plain34", "resnet", _PLAIN, (21_623_848, 3_644_493_824), MEAN_ONLY),
    _imagenet("resnet18", "resnet", f"{RESNET} 3.3, table 1", (11_689_512, 1_814_073_344)),
    _imagenet("resnet34", "resnet", f"{RESNET} 3.3, table 1", (21_797_672, 3_663_761_408)),
    _imagenet("resnet50", "resnet", _STRIDE_3X3, (25_557_032, 4_089_184_256)),
    _imagenet("resnet101", "resnet", _STRIDE_3X3, (44_549_160, 7_801_405_440)),
    _imagenet("resnet152", "resnet", _STRIDE_3X3, (60_192_808, 11_513_626_624)),
    _imagenet("resnet50-paper", "resnet", _STRIDE_1X1, (25_557_032, 3_857_973_248), MEAN_ONLY),
    _imagenet("resnet101-paper", "resnet", _STRIDE_1X1, (44_549_160, 7_570_194_432), MEAN_ONLY),
    _imagenet("resnet152-paper", "resnet", _STRIDE_1X1, (60_192_808, 11_282_415_616), MEAN_ONLY),
    _imagenet("vgg11", "vgg", f"{VGG} A", (132_863_336, 7_609_090_048)),
    _imagenet("vgg11_bn", "vgg", f"{VGG} A, {_BN}", (132_868_840, 7_609_090_048)),
    _imagenet("vgg13", "vgg", f"{VGG} B", (133_047_848, 11_308_466_176)),
    _imagenet("vgg13_bn", "vgg", f"{VGG} B, {_BN}", (133_053_736, 11_308_466_176)),
    _imagenet("vgg16", "vgg", f"{VGG} D", (138_357_544, 15_470_264_320)),
    _imagenet("vgg16_bn", "vgg", f"{VGG} D, {_BN}", (138_365_992, 15_470_264_320)),
    _imagenet("vgg19", "vgg", f"{VGG} E", (143_667_240, 19_632_062_464)),
    _imagenet("vgg19_bn", "vgg", f"{VGG} E, {_BN}", (143_678_248, 19_632_062_464)),
)
NETWORKS: dict[str, Network] = {network.name: network for network in _ALL}
