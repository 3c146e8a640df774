"""Ten crops of a picture: the four corners, the centre, and the mirror image of each.

The protocol of AlexNet (Krizhevsky et al., 2012, section 4.1), which the ResNet paper's table 2 reports: the
probabilities of the ten are averaged.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import InputError
from engineworks.runtime.preprocessing import Picture, Preprocessing, normalise, preprocess

TEN = 10


def ten_crops(picture: Picture, recipe: Preprocessing) -> npt.NDArray[Any]:
    """Prepare the ten crops of one picture.

    Args:
        picture: as ``preprocess`` takes it, one.
        recipe: with a crop; what it resizes to is cut there.

    Returns:
        ``(10, C, H, W)`` float32, or ``(10, H, W, C)`` uint8 where the graph normalises: upper left, upper right, lower
        left, lower right, centre, then their mirror images. The fifth is what ``preprocess`` gives.

    Raises:
        InputError: no picture, or a recipe without a crop.
    """
    if recipe.crop is None:
        raise InputError("ten crops: the bundle's preprocessing has no crop, so there is nothing to move. Do without.")
    pixels = preprocess(picture, replace(recipe, crop=None, pad=0, in_graph=True))[0]
    (height, width), (crop_height, crop_width) = pixels.shape[:2], recipe.crop
    down, right = height - crop_height, width - crop_width
    if down < 0 or right < 0:
        raise InputError(f"picture: expected at least {crop_height}×{crop_width} pixels, got {height}×{width}.")
    corners = ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2)))
    crops = [pixels[top : top + crop_height, left : left + crop_width] for top, left in corners]
    some = np.stack([*crops, *(crop[:, ::-1] for crop in crops)])
    some = np.pad(some, ((0, 0), (recipe.pad,) * 2, (recipe.pad,) * 2, (0, 0)))
    return some if recipe.in_graph else normalise(some, recipe)
