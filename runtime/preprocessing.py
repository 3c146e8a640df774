"""From pictures to the network's input: one function for export, calibration, evaluation and serving.

What it does is data (``Preprocessing``) that travels in the bundle, so that a service cannot prepare its images in
another way than the one that was measured. The steps, in order: decode, turn upright, convert, resize, crop, pad,
divide by 255, subtract the mean, divide by the standard deviation, channels first.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | Path | bytes | npt.NDArray[np.uint8] | Image"
Pictures: TypeAlias = "Picture | Iterable[Picture]"
Mode = Literal["RGB", "L"]
_CHANNELS = {"RGB": 3, "L": 1}
# No EPS: Pillow would start Ghostscript on it.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_DEEP = ("I", "F")  # more than 8 bits a channel: Pillow clips them at 255 without a word
_FULL_SCALE = {"PPM", "PNG"}  # formats whose grey of more than 8 bits Pillow brings to 0…65535, in mode I too
_MOST_PIXELS = 178_956_970  # Pillow's own limit for a file, here for what comes out of a resizing
_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # the numbers are Pillow's


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input.

    Attributes:
        mode: ``RGB`` (3 channels) or ``L`` (grey, 1 channel).
        resize: length of the short side in pixels, or (height, width), or None for no resizing.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``, antialiased as Pillow does it.
        crop: (height, width) taken from the centre, or None.
        pad: pixels of value 0 added on every side after the crop.
        mean: per channel, in the unit range, taken off after the division by 255.
        std: per channel; what is left is divided by it.
        in_graph: the network's own graph scales and normalises: what it is given are the pixels, channels last.
    """

    mode: Mode
    resize: int | tuple[int, int] | None
    interpolation: str
    crop: tuple[int, int] | None
    pad: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_graph: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Preprocessing":
        """Read what a manifest or a model's registry entry says.

        Raises:
            InputError: a field is missing or mistyped, an unknown mode or interpolation, or as many means as there
                are channels are not given.
        """
        try:
            resize, crop = content["resize"], content["crop"]
            made = cls(
                mode=content["mode"],
                resize=_pair(resize) if isinstance(resize, (list, tuple)) else resize and int(resize),
                interpolation=content["interpolation"],
                crop=None if crop is None else _pair(crop),
                pad=int(content["pad"]),
                mean=tuple(float(value) for value in content["mean"]),
                std=tuple(float(value) for value in content["std"]),
                in_graph=bool(content.get("in_graph", False)),
            )
            made._check()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"preprocessing: lacks or mistypes a field: {error!s}.") from error
        return made

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as they stand in a manifest; ``in_graph`` stands there only where it is true."""
        content: dict[str, Any] = {
            "mode": self.mode,
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "interpolation": self.interpolation,
            "crop": None if self.crop is None else list(self.crop),
            "pad": self.pad,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return content | ({"in_graph": True} if self.in_graph else {})

    def _check(self) -> None:
        if self.mode not in _CHANNELS:
            raise InputError(f"preprocessing: expected mode RGB or L, got {self.mode!r}.")
        if self.interpolation not in _INTERPOLATIONS:
            known = ", ".join(_INTERPOLATIONS)
            raise InputError(f"preprocessing: expected an interpolation of {known}; got {self.interpolation!r}.")
        sizes = [size for size in (self.resize, self.crop) if size is not None]
        if self.pad < 0 or any(np.min(size) < 1 for size in sizes):
            raise InputError(f"preprocessing: expected sizes of 1 or more and a pad of 0 or more, got {self}.")
        channels = _CHANNELS[self.mode]
        if len(self.mean) != channels or len(self.std) != channels or not all(self.std):
            raise InputError(
                f"preprocessing: mode {self.mode} needs {channels} means and as many standard deviations other than "
                f"0, got {self.mean} and {self.std}."
            )


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def preprocess(pictures: Pictures, recipe: Preprocessing) -> npt.NDArray[Any]:
    """Turn pictures into one batch.

    Args:
        pictures: a path, the bytes of an image file, a Pillow image, an array ``(H, W, 3)`` or ``(H, W)`` of uint8,
            or an iterable of these. A uint8 array ``(N, H, W, 3)`` counts as N pictures, and so does ``(N, H, W)``
            where the mode is ``L``.
            A grey picture of 16 bits is scaled to 8: value / 257, rounded; colour of 16 bits Pillow itself cuts to 8.
        recipe: what to do with them; it stands in the bundle's manifest.

    Returns:
        ``(N, C, H, W)`` float32; N pictures, C channels. Where the graph normalises (``in_graph``), ``(N, H, W, C)``
        uint8: ``normalise`` makes the former of the latter.

    Raises:
        InputError: a file that is no image, an array of another dtype or shape, 32 bits, floating point or 12 bits a
            channel (whose white nobody knows), a picture smaller than the crop, or pictures that come out in different
            sizes.
    """
    rows = [_prepare(picture, recipe) for picture in one_by_one(pictures, recipe)]
    if not rows:
        raise InputError("preprocess: expected at least one picture, got none.")
    shapes = {row.shape for row in rows}
    if len(shapes) > 1:
        raise InputError(f"preprocess: the pictures come out in different sizes {sorted(shapes)}; give a crop.")
    return np.stack(rows)


def one_by_one(pictures: Pictures, recipe: Preprocessing) -> "Iterable[Picture]":
    """Take apart what ``preprocess`` takes: one picture, an array of several, or an iterable, left lazy."""
    if isinstance(pictures, (str, Path, bytes)) or hasattr(pictures, "convert"):
        return [cast("Picture", pictures)]
    if isinstance(pictures, np.ndarray):
        grey = recipe.mode == "L" and pictures.ndim == 3 and pictures.shape[2] not in {1, 3, 4}
        return list(pictures) if pictures.ndim == 4 or grey else [pictures]
    if not isinstance(pictures, Iterable):
        raise InputError(f"preprocess: expected a picture or several, got {type(pictures).__name__}.")
    return pictures


def normalise(pixels: npt.NDArray[np.uint8], recipe: Preprocessing) -> npt.NDArray[np.float32]:
    """Divide by 255, subtract the mean, divide by the standard deviation, in float32 and in this order.

    Args:
        pixels: ``(…, H, W, C)``, channels last.
        recipe: with as many means and deviations as there are channels.

    Returns:
        ``(…, C, H, W)`` float32, channels first. A graph that normalises does the same, bit for bit.
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    normal = (scaled - np.array(recipe.mean, np.float32)) / np.array(recipe.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(normal, -1, -3))


def _prepare(picture: Picture, recipe: Preprocessing) -> npt.NDArray[Any]:
    image = _resize(_decode(picture, recipe.mode), recipe)
    pixels = _crop(np.asarray(image, np.uint8), recipe.crop)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if recipe.pad:
        pixels = np.pad(pixels, ((recipe.pad, recipe.pad), (recipe.pad, recipe.pad), (0, 0)))
    return np.ascontiguousarray(pixels) if recipe.in_graph else normalise(pixels, recipe)


def _decode(picture: Picture, mode: Mode) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, np.ndarray):
        return _from_array(picture).convert(mode)
    name = "image bytes" if isinstance(picture, bytes) else str(picture)
    try:
        if isinstance(picture, Image.Image):
            return _upright(picture, mode)
        if isinstance(picture, (str, Path, bytes)):
            source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
            with Image.open(source, formats=_FORMATS) as image:
                return _upright(image, mode)
    except UnidentifiedImageError as error:
        known = ", ".join(_FORMATS)
        raise InputError(f"{name}: expected an image ({known}), got something else.") from error
    except InputError:
        raise
    except Exception as error:  # on damaged data Pillow's decoders raise whatever comes
        raise InputError(f"{name}: cannot be read as an image ({error}).") from error
    raise InputError(
        f"picture: expected a path, the bytes of an image file, a Pillow image or an array, got "
        f"{type(picture).__name__}."
    )


def _upright(image: "Image", mode: Mode) -> "Image":
    """Load, turn as the camera was held, and convert; transparency is dropped."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith(_DEEP):
        return _to_eight_bits(turned, image).convert(mode)
    return turned.convert("RGBA").convert(mode) if "transparency" in turned.info else turned.convert(mode)


def _to_eight_bits(turned: "Image", source: "Image") -> "Image":
    """Scale 16-bit grey; ``source`` still knows which file it came from."""
    from PIL import Image

    tags: Mapping[int, Any] = getattr(
        source, "tag_v2", {}
    )  # TIFF 6.0: 258 BitsPerSample, 262 Photometric (0: negative)
    usual = tags.get(258, (16,)) == (16,) and tags.get(262, 1) == 1
    full = turned.mode.startswith("I;16") or (turned.mode == "I" and source.format in _FULL_SCALE)
    if not (usual and full):
        raise InputError(
            f"picture: expected 8 bits a channel, or 16 bits of grey; got Pillow's mode {turned.mode}. "
            "Convert it first."
        )
    deep = np.asarray(turned).astype(np.uint32)
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def _from_array(pixels: npt.NDArray[np.uint8]) -> "Image":
    from PIL import Image

    if pixels.size == 0:
        raise InputError(f"picture: expected pixels, got an empty array {pixels.shape}.")
    grey = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.dtype != np.uint8 or grey.ndim not in {2, 3} or (grey.ndim == 3 and grey.shape[2] not in {3, 4}):
        raise InputError(
            f"picture: expected uint8 (H, W, 3) or (H, W), got {pixels.dtype} {pixels.shape}. "
            "An array that is already prepared goes to infer()."
        )
    return Image.fromarray(grey)


def _resize(image: "Image", recipe: Preprocessing) -> "Image":
    from PIL import Image

    if recipe.resize is None:
        return image
    width, height = image.size
    if isinstance(recipe.resize, tuple):
        size = (recipe.resize[1], recipe.resize[0])
    elif width <= height:
        size = (recipe.resize, int(recipe.resize * height / width))
    else:
        size = (int(recipe.resize * width / height), recipe.resize)
    if size == image.size:
        return image
    if size[0] * size[1] > _MOST_PIXELS:
        raise InputError(f"picture: {height}×{width} would be resized to {size[1]}×{size[0]} pixels. Crop it first.")
    return image.resize(size, Image.Resampling(_INTERPOLATIONS[recipe.interpolation]))


def _crop(pixels: npt.NDArray[np.uint8], crop: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    if crop is None:
        return pixels
    height, width = pixels.shape[:2]
    if height < crop[0] or width < crop[1]:
        raise InputError(
            f"picture: expected at least {crop[0]}×{crop[1]} pixels, got {height}×{width}. Enlarge it first."
        )
    top, left = _half(height - crop[0]), _half(width - crop[1])
    return pixels[top : top + crop[0], left : left + crop[1]]


def _half(extra: int) -> int:
    """Round half of the margin to even, as torchvision's centre crop does."""
    return round(extra / 2)
