"""Pictures become inputs as torchvision makes them, whatever they come as; bad ones are refused with one error."""

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engineworks.runtime import InputError, Preprocessing, preprocess
from engineworks.runtime.preprocessing import normalise

Pixels = npt.NDArray[np.uint8]
PLAIN = Preprocessing("RGB", None, "bilinear", None, 0, (0.0,) * 3, (1.0,) * 3)
GREY = Preprocessing("L", None, "bilinear", None, 0, (0.0,), (1.0,))
IMAGENET = Preprocessing("RGB", 20, "bilinear", (16, 16), 0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def levels(result: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Back to 0…255, channels last."""
    values: npt.NDArray[np.float64] = result[0].transpose(1, 2, 0).astype(np.float64) * 255
    return values


# --- what comes out


def test_a_pixel_is_divided_shifted_and_scaled_in_that_order() -> None:
    recipe = replace(PLAIN, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    found = preprocess(np.array([[[255, 0, 51]]], np.uint8), recipe)
    assert found.tolist() == [[[[1.0]], [[-1.0]], [[np.float32(0.1)]]]]


def test_the_batch_is_float32_channels_first_and_contiguous(pixels: Pixels) -> None:
    found = preprocess([pixels, pixels], PLAIN)
    assert (found.dtype.name, found.shape, found.flags.c_contiguous) == ("float32", (2, 3, 30, 20), True)


def test_channels_keep_their_order_red_green_blue() -> None:
    found = preprocess(np.array([[[10, 20, 30]]], np.uint8), PLAIN)
    assert np.allclose(found.ravel() * 255, [10, 20, 30], atol=1e-4)


def test_padding_is_the_value_of_a_black_pixel() -> None:
    recipe = Preprocessing("L", None, "bilinear", None, 2, (0.5,), (0.5,))
    found = preprocess(np.full((1, 1), 255, np.uint8), recipe)[0, 0]
    expected = np.full((5, 5), -1.0)
    expected[2, 2] = 1.0
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(4, [1, 2]), (5, [2, 3]), (7, [2, 3, 4, 5]), (3, [0, 1]), (2, [0, 1])],  # margins 1, 1.5→2, 2.5→2 (even), .5→0
)
def test_the_crop_is_centred_and_half_a_pixel_rounds_to_even(side: int, expected: list[int]) -> None:
    row = np.tile(np.arange(side, dtype=np.uint8), (side, 1))
    size = len(expected)
    found = preprocess(row, replace(GREY, crop=(size, size)))[0, 0, 0] * 255
    assert np.rint(found).tolist() == expected


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(30, 20, (15, 10)), (20, 30, (10, 15)), (20, 33, (10, 16)), (33, 20, (16, 10))]
)
def test_resizing_sets_the_short_side_and_cuts_the_fraction_of_the_long_one(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert preprocess(noise(height, width), replace(PLAIN, resize=10)).shape[2:] == expected


def test_a_size_of_two_numbers_is_height_and_width(pixels: Pixels) -> None:
    assert preprocess(pixels, replace(PLAIN, resize=(7, 9))).shape == (1, 3, 7, 9)


def reference(pixels: Pixels, recipe: Preprocessing) -> npt.NDArray[np.float64]:
    """torchvision's Resize, CenterCrop, ToTensor and Normalize, from their documentation, in double precision."""
    height, width = pixels.shape[:2]
    if isinstance(recipe.resize, int):
        short, long = min(height, width), max(height, width)
        new = int(recipe.resize * long / short)
        size = (recipe.resize, new) if width <= height else (new, recipe.resize)  # Pillow's: width first
        resample = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}[recipe.interpolation]
        pixels = np.asarray(Image.fromarray(pixels).resize(size, resample))
    if recipe.crop is not None:
        top = round((pixels.shape[0] - recipe.crop[0]) / 2.0)
        left = round((pixels.shape[1] - recipe.crop[1]) / 2.0)
        pixels = pixels[top : top + recipe.crop[0], left : left + recipe.crop[1]]
    scaled = pixels.astype(np.float64).transpose(2, 0, 1) / 255
    mean, std = (np.reshape(np.array(values, np.float64), (-1, 1, 1)) for values in (recipe.mean, recipe.std))
    result: npt.NDArray[np.float64] = (scaled - mean) / std
    return result


@given(
    st.integers(16, 60),
    st.integers(16, 60),
    st.none() | st.integers(16, 40),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_the_steps_are_those_of_torchvision(
    height: int, width: int, resize: int | None, interpolation: str, tall: int, wide: int
) -> None:
    recipe = replace(IMAGENET, resize=resize, interpolation=interpolation, crop=(tall, wide))
    picture = noise(height, width, height * 100 + width)
    # float32 rounds the quotient, the difference and the quotient again: each within 2⁻²⁴ of at most 4.4
    assert np.allclose(preprocess(picture, recipe)[0], reference(picture, recipe), rtol=0, atol=4e-6)


# --- what goes in


def test_a_picture_is_the_same_in_every_form(tmp_path: Path, pixels: Pixels) -> None:
    file = tmp_path / "a picture [1].png"
    image = Image.fromarray(pixels)
    file.write_bytes(encode(image))
    expected = preprocess(pixels, IMAGENET)
    for picture in (file, str(file), file.read_bytes(), image, Image.open(file), [pixels], (pixels,), iter([pixels])):
        assert np.array_equal(preprocess(picture, IMAGENET), expected)


def test_an_array_of_pictures_is_so_many_pictures(pixels: Pixels) -> None:
    many = np.stack([pixels, pixels[::-1], pixels[:, ::-1]])
    assert np.array_equal(preprocess(many, PLAIN), np.concatenate([preprocess(one, PLAIN) for one in many]))


def test_an_array_of_grey_pictures_is_so_many_pictures(pixels: Pixels) -> None:
    many = np.stack([pixels[:, :, 0], pixels[:, :, 1]])
    assert preprocess(many, GREY).shape == (2, 1, 30, 20)


def test_channels_first_are_not_taken_for_three_grey_pictures(pixels: Pixels) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \(H, W, 3\) or \(H, W\), got uint8 \(3, 30, 20\)"):
        preprocess(pixels.transpose(2, 0, 1), PLAIN)


def test_an_array_that_is_not_contiguous_is_read_right(pixels: Pixels) -> None:
    assert np.array_equal(preprocess(pixels[::-1, ::2], PLAIN), preprocess(pixels[::-1, ::2].copy(), PLAIN))


@pytest.mark.parametrize("shape", [(30, 20), (30, 20, 1)])
def test_grey_given_to_a_colour_network_is_the_same_in_every_channel(pixels: Pixels, shape: tuple[int, ...]) -> None:
    found = levels(preprocess(pixels[:, :, 0].reshape(shape), PLAIN))
    assert np.allclose(found, pixels[:, :, :1], atol=1e-4)


def test_colour_given_to_a_grey_network_is_its_luma(pixels: Pixels) -> None:
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, which Pillow documents for L
    assert np.abs(levels(preprocess(pixels, GREY))[:, :, 0] - luma).max() < 1


def test_transparency_is_dropped(pixels: Pixels) -> None:
    alpha = np.dstack([pixels, np.zeros((30, 20), np.uint8)])
    assert np.array_equal(preprocess(alpha, PLAIN), preprocess(pixels, PLAIN))
    assert np.array_equal(preprocess(encode(Image.fromarray(alpha)), PLAIN), preprocess(pixels, PLAIN))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(216))])
def test_a_palette_is_looked_up_without_a_warning(transparency: int | bytes | None) -> None:
    colours = np.array([[[0, 51, 102], [255, 204, 153]]], np.uint8)
    palette = Image.fromarray(colours).convert("P", palette=Image.Palette.WEB)
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    assert np.allclose(levels(preprocess(encode(palette, **options), PLAIN)), colours, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LA", "PNG"), ("1", "PNG"), ("L", "BMP")]
)
def test_other_kinds_of_colour_are_converted_as_pillow_does(pixels: Pixels, mode: str, kind: str) -> None:
    file = encode(Image.fromarray(pixels).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert np.allclose(levels(preprocess(file, PLAIN)), expected, atol=1e-4)


DEEP = (np.arange(64, dtype=np.uint32) * 65535 // 63).reshape(8, 8)  # 16-bit grey, black to white


def deep(kind: str, mode: str = "I;16") -> bytes:
    return encode(Image.fromarray(DEEP.astype(np.uint16)).convert(mode), kind)


@pytest.mark.parametrize("recipe", [PLAIN, GREY], ids=["RGB", "L"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_of_grey_are_scaled_and_never_clipped(kind: str, recipe: Preprocessing) -> None:
    picture = deep(kind)
    assert np.array_equal(levels(preprocess(picture, recipe))[:, :, 0].round(), np.rint(DEEP / 257))
    assert np.array_equal(preprocess(Image.open(io.BytesIO(picture)), recipe), preprocess(picture, recipe))


def test_a_sixteen_bit_picture_in_memory_is_read_as_its_file_is() -> None:
    image = Image.fromarray(DEEP.astype(np.uint16))
    assert image.mode == "I;16"
    assert np.array_equal(preprocess(image, GREY), preprocess(encode(image), GREY))


def test_eight_bits_widened_to_sixteen_come_back_exactly() -> None:
    narrow = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = Image.fromarray(narrow.astype(np.uint16) * 257)
    assert np.array_equal(preprocess(wide, GREY), preprocess(narrow, GREY))


def test_a_sixteen_bit_picture_is_turned_as_the_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = encode(Image.fromarray(DEEP.astype(np.uint16)), "PNG", exif=exif)
    assert np.array_equal(levels(preprocess(picture, GREY))[:, :, 0].round(), np.rot90(np.rint(DEEP / 257), -1))


@pytest.mark.parametrize(("dtype", "mode"), [("int32", "I"), ("float32", "F")])
@pytest.mark.parametrize("recipe", [PLAIN, GREY], ids=["RGB", "L"])
def test_pictures_whose_white_nobody_knows_are_refused(dtype: str, mode: str, recipe: Preprocessing) -> None:
    image = Image.fromarray(np.arange(0, 64000, 1000).reshape(8, 8).astype(dtype))
    for picture in (image, encode(image, "TIFF")):
        with pytest.raises(InputError) as caught:
            preprocess(picture, recipe)
        assert str(caught.value) == (
            f"picture: expected 8 bits a channel, or 16 bits of grey; got Pillow's mode {mode}. Convert it first."
        )


def test_a_sixteen_bit_negative_is_refused() -> None:
    content = bytearray(deep("TIFF"))
    at = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # tag 262, one short: 1, black is zero
    content[at + 8] = 0
    with pytest.raises(InputError, match=r"got Pillow's mode I;16\. Convert it first\."):
        preprocess(bytes(content), GREY)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_the_camera_was_held_in_every_form(tmp_path: Path, orientation: int) -> None:
    # Exif 2.3, tag 274: what undoes each orientation, so that the result is upright
    turn: Callable[[Pixels], Pixels] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    stored = np.repeat(np.repeat(noise(2, 3), 16, 0), 16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "held.jpg"
    file.write_bytes(encode(Image.fromarray(stored), "JPEG", exif=exif, quality=100, subsampling=0))
    upright = turn(np.asarray(Image.open(file)))
    for picture in (file, file.read_bytes(), Image.open(file)):
        assert np.array_equal(levels(preprocess(picture, PLAIN)).round(), upright)


def test_the_first_frame_of_an_animation_counts(pixels: Pixels) -> None:
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    file = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(levels(preprocess(file, PLAIN)).round(), pixels)


def test_a_picture_given_is_left_as_it_was(pixels: Pixels) -> None:
    image, before = Image.fromarray(pixels), pixels.copy()
    preprocess([pixels, image], IMAGENET)
    assert np.array_equal(pixels, before)
    assert (image.size, image.mode) == ((20, 30), "RGB")


# --- what is refused


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8), bool),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
        np.array(3, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_of_another_type_or_shape_is_shown(array: npt.NDArray[Any]) -> None:
    with pytest.raises(
        InputError, match=r"^picture: expected uint8 \(H, W, 3\) or \(H, W\), got .* goes to infer\(\)\.$"
    ):
        preprocess(array, PLAIN)


@pytest.mark.parametrize("pictures", [[], (), iter([]), np.zeros((0, 8, 8, 3), np.uint8)], ids=str)
def test_no_picture_is_refused(pictures: Any) -> None:
    with pytest.raises(InputError) as caught:
        preprocess(pictures, PLAIN)
    assert str(caught.value) == "preprocess: expected at least one picture, got none."


@pytest.mark.parametrize("shape", [(0, 0, 3), (5, 0, 3), (0, 5), (2, 0, 5, 3)])
def test_an_array_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^picture: expected pixels, got an empty array"):
        preprocess(np.zeros(shape, np.uint8), replace(PLAIN, resize=8))


@pytest.mark.parametrize("thing", [5, None, 1.5, object])
def test_what_is_no_picture_is_named_by_its_type(thing: Any) -> None:
    with pytest.raises(InputError, match=f"got {type(thing).__name__}"):
        preprocess(thing, PLAIN)
    with pytest.raises(InputError, match=f"got {type(thing).__name__}"):
        preprocess([thing], PLAIN)


@pytest.mark.parametrize("content", [b"", b"x", b"not an image at all", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", bytes(5000)])
def test_bytes_that_are_no_image_are_refused(content: bytes) -> None:
    with pytest.raises(
        InputError, match=r"^image bytes: (expected an image \(JPEG, PNG, .*\)|cannot be read as an image)"
    ):
        preprocess(content, PLAIN)


def test_postscript_is_refused_before_pillow_starts_another_program(
    monkeypatch: pytest.MonkeyPatch, pixels: Pixels
) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *given, **named: started.append(given))
    with pytest.raises(InputError, match="got something else"):
        preprocess(encode(Image.fromarray(pixels), "EPS"), PLAIN)
    assert started == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.jpg", "No such file or directory"),
        ("", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "null byte"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_a_path_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        preprocess(name, PLAIN)
    assert str(caught.value).startswith(f"{name}: cannot be read as an image")
    assert message in str(caught.value)


def test_an_image_cut_short_is_refused_in_every_form(pixels: Pixels) -> None:
    file = encode(Image.fromarray(pixels), "JPEG")
    half = file[:-200]
    for picture in (half, Image.open(io.BytesIO(half))):
        with pytest.raises(InputError, match=r"cannot be read as an image \(image file is truncated"):
            preprocess(picture, PLAIN)


def test_an_image_of_absurd_size_is_refused_unread() -> None:
    bomb = bytearray(encode(Image.new("L", (1, 1)), "BMP"))
    bomb[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(InputError, match=r"400000000 pixels.*decompression bomb"):
        preprocess(bytes(bomb), PLAIN)


def test_a_sliver_is_not_blown_up_to_gigabytes() -> None:
    with pytest.raises(InputError) as caught:
        preprocess(np.zeros((1, 6_000, 3), np.uint8), replace(PLAIN, resize=256))
    assert str(caught.value) == ("picture: 1×6000 would be resized to 256×1536000 pixels. Crop it first.")


def test_a_picture_smaller_than_the_crop_is_refused_with_both_sizes(pixels: Pixels) -> None:
    with pytest.raises(InputError) as caught:
        preprocess(pixels, replace(PLAIN, crop=(31, 20)))
    assert str(caught.value) == "picture: expected at least 31×20 pixels, got 30×20. Enlarge it first."


def test_pictures_of_different_sizes_are_refused_with_those_sizes(pixels: Pixels) -> None:
    with pytest.raises(InputError) as caught:
        preprocess([pixels, pixels[:8]], PLAIN)
    assert str(caught.value) == (
        "preprocess: the pictures come out in different sizes [(3, 8, 20), (3, 30, 20)]; give a crop."
    )


def seeds() -> Iterator[bytes]:
    image = Image.fromarray(noise(12, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield encode(image, kind, exif=exif)
    for kind in ("GIF", "BMP", "PPM", "JPEG2000", "AVIF", "DDS", "ICO", "TGA"):
        yield encode(image, kind)


@settings(max_examples=400)
@given(
    st.sampled_from(list(seeds())),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=8),
    st.none() | st.integers(0, 600),
)
def test_damaged_images_are_refused_with_our_own_error_or_read(
    file: bytes, edits: list[tuple[int, int]], keep: int | None
) -> None:
    content = bytearray(file)
    for position, value in edits:
        content[position % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, on damaged metadata
        try:
            found = preprocess(bytes(content[:keep]), IMAGENET)
        except InputError:
            return
    assert found.shape == (1, 3, 16, 16)
    assert np.isfinite(found).all()


# --- the recipe

RECIPES = st.builds(
    Preprocessing,
    st.just("RGB"),
    st.none() | st.integers(1, 500) | st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    st.none() | st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.integers(0, 9),
    st.tuples(*[st.floats(-9, 9)] * 3),
    st.tuples(*[st.floats(0.01, 9)] * 3),
)


@given(RECIPES)
def test_a_recipe_is_read_as_it_was_written(recipe: Preprocessing) -> None:
    assert Preprocessing.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("field", ["mode", "resize", "interpolation", "crop", "pad", "mean", "std"])
def test_a_recipe_without_a_field_is_refused_with_its_name(field: str) -> None:
    content = IMAGENET.to_json()
    del content[field]
    with pytest.raises(InputError, match=f"^preprocessing: lacks or mistypes a field: '{field}'"):
        Preprocessing.from_json(content)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mode", "BGR", "expected mode RGB or L, got 'BGR'"),
        ("mode", [], "lacks or mistypes a field"),
        ("interpolation", "area", "expected an interpolation of nearest, lanczos, bilinear, bicubic; got 'area'"),
        ("mean", [0.5], "mode RGB needs 3 means"),
        ("std", [1, 1], "mode RGB needs 3 means and as many standard deviations other than 0"),
        ("std", [1, 0, 1], "standard deviations other than 0"),
        ("std", "abc", "lacks or mistypes a field"),
        ("crop", 224, "lacks or mistypes a field"),
        ("crop", [224], "lacks or mistypes a field"),
        ("crop", [0, 8], "expected sizes of 1 or more"),
        ("resize", 0, "expected sizes of 1 or more"),
        ("resize", [8, -1], "expected sizes of 1 or more"),
        ("pad", -1, "a pad of 0 or more"),
        ("pad", None, "lacks or mistypes a field"),
    ],
)
def test_a_recipe_with_a_wrong_field_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^preprocessing: .*{message}"):
        Preprocessing.from_json(IMAGENET.to_json() | {field: value})


def test_a_recipe_that_is_a_mapping_of_another_kind_is_read() -> None:
    assert Preprocessing.from_json(dict(IMAGENET.to_json(), later="field")) == IMAGENET


# --- where the graph normalises


@pytest.mark.parametrize(
    "recipe",
    [
        IMAGENET,
        GREY,
        replace(GREY, pad=2, mean=(0.3,), std=(0.1,)),
        replace(IMAGENET, resize=(18, 17), interpolation="bicubic"),
    ],
)
def test_what_the_graph_is_given_and_then_does_is_what_preprocess_does(recipe: Preprocessing, pixels: Pixels) -> None:
    raw = preprocess([pixels, pixels[::-1].copy()], replace(recipe, in_graph=True))
    assert (raw.dtype.name, raw.flags.c_contiguous) == ("uint8", True)
    assert raw.shape[3] == len(recipe.mean)
    assert np.array_equal(normalise(raw, recipe), preprocess([pixels, pixels[::-1].copy()], recipe))


@given(
    st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(tuple),
    st.lists(st.floats(1e-3, 300), min_size=3, max_size=3).map(tuple),
)
def test_normalising_is_float32_in_the_order_written(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    found = normalise(pixels, replace(PLAIN, mean=mean, std=std))
    for value in (0, 1, 127, 255):
        for channel in range(3):
            step = np.float32(value) / np.float32(255)
            expected = (step - np.float32(mean[channel])) / np.float32(std[channel])
            assert found[channel, value // 16, value % 16] == expected


def test_one_picture_or_many_are_normalised_alike() -> None:
    many = np.stack([noise(4, 5, seed) for seed in range(3)])
    assert np.array_equal(normalise(many, IMAGENET)[1], normalise(many[1], IMAGENET))
    assert normalise(many, IMAGENET).shape == (3, 3, 4, 5)


def test_in_graph_travels_with_the_bundle_and_stands_there_only_where_it_is_true() -> None:
    made = replace(IMAGENET, in_graph=True)
    assert made.to_json()["in_graph"] is True
    assert Preprocessing.from_json(made.to_json()) == made
    assert "in_graph" not in IMAGENET.to_json()
    assert Preprocessing.from_json(IMAGENET.to_json()) == IMAGENET
