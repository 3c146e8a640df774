"""The ten crops lie where they should, and the fifth is the one that everything else uses."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.runtime import InputError, Preprocessing, preprocess
from engineworks.runtime.crops import ten_crops

RECIPE = Preprocessing("RGB", 16, "bilinear", (8, 6), 0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, in_graph=True), replace(RECIPE, pad=2)])
def test_the_fifth_is_what_preprocess_gives(pixels: npt.NDArray[np.uint8], recipe: Preprocessing) -> None:
    found = ten_crops(pixels, recipe)
    assert found.dtype == (np.uint8 if recipe.in_graph else np.float32)
    assert np.array_equal(found[4], preprocess(pixels, recipe)[0])


def test_corners_are_corners_and_the_rest_their_mirror_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    recipe = replace(RECIPE, resize=None, in_graph=True, crop=(4, 5))
    found = ten_crops(pixels, recipe)
    corners = [pixels[:4, :5], pixels[:4, -5:], pixels[-4:, :5], pixels[-4:, -5:], pixels[2:6, 3:8]]
    assert np.array_equal(found[:5], corners)
    assert np.array_equal(found[5:], found[:5, :, ::-1])


def test_without_a_crop_there_is_nothing_to_move(pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="no crop, so there is nothing to move"):
        ten_crops(pixels, replace(RECIPE, crop=None))


def test_a_picture_smaller_than_the_crop_is_refused(pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="expected at least 99×99 pixels, got 16×16"):
        ten_crops(pixels[:16, :16], replace(RECIPE, crop=(99, 99)))
