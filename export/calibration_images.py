"""The images that INT8 is calibrated with: opened, divided, and those that are held out as samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.calibration.images import open_images
from engineworks.calibration.source import Images
from engineworks.export.inputs import InputSpec
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError, InputError
from engineworks.runtime.manifest import Tensor
from engineworks.runtime.preprocessing import Preprocessing, normalise

Array = npt.NDArray[Any]
Row = Mapping[str, Array]
SAMPLES = 8
_SAME = 1e-5  # of a normalised level: float32 keeps more


def open_calibration(
    recipe: Recipe, inputs: Sequence[InputSpec], preprocessing: Mapping[str, Any] | None, say: Callable[[str], None]
) -> Images:
    """Open ``--calib-data`` for a network.

    Args:
        recipe: says what data, and how many images.
        inputs: what the network takes.
        preprocessing: as a manifest has it.
        say: told of each image that is left out, and why.

    Raises:
        ExportError: no such data, fewer than 8 images or than two of a fixed batch, or images that do not fit the
            network.
    """
    tensors = [Tensor(spec.name, spec.dtype, ("batch", *spec.shape)) for spec in inputs]
    known = normalised_before(preprocessing)
    assert recipe.calib_data is not None
    try:
        images = open_images(
            recipe.calib_data,
            tensors,
            known,
            count=recipe.calib_images,
            on_skip=lambda name, why: say(f"left out {name}: {why}"),
        )
    except InputError as error:
        raise ExportError(str(error)) from error
    divided(images, recipe)
    return images


def divided(images: Images, recipe: Recipe) -> tuple[Images, Images]:
    """Return the images to fit on and those that are held out; each part fills a batch where that is fixed.

    Raises:
        ExportError: there are too few for that, and how many are needed.
    """
    try:
        return images.divide(least=fixed_rows(recipe))
    except InputError as error:
        mend = f"Give as many and --calib-images {2 * fixed_rows(recipe)}, or another --batch."
        raise ExportError(f"{error} {mend}") from error


def fixed_rows(recipe: Recipe) -> int:
    """Return the rows that every run of the graph takes; 1 where the batch is free."""
    return recipe.batch.max if recipe.batch.min == recipe.batch.max else 1


def normalised_before(preprocessing: Mapping[str, Any] | None) -> Preprocessing | None:
    """Return how pictures are made ready for the graph behind a head; None where that is not known."""
    return None if preprocessing is None else replace(Preprocessing.from_json(preprocessing), in_graph=False)


def held_out_samples(held: Images, pictures: Preprocessing | None = None) -> dict[str, Array]:
    """Return up to 8 held-out images as one batch: what every graph is compared on.

    Args:
        held: those that are held out (``Calibrator.parts``).
        pictures: how they were normalised, where they are wanted as they were before: uint8, channels last.

    Raises:
        ExportError: an image that does not fit, or too many that cannot be read; or arrays that are no pictures.
    """
    rows = taken(held, SAMPLES)
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return batch if pictures is None else {name: _as_pictures(array, pictures) for name, array in batch.items()}


def _as_pictures(array: Array, recipe: Preprocessing) -> Array:
    """Undo ``normalise``: what was made of whole numbers gives the same whole numbers."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (recipe.mean, recipe.std))
    levels = np.rint((array * std + mean) * 255)
    pictures = np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
    if np.abs(normalise(pictures, recipe) - array).max() > _SAME:
        raise ExportError("--input uint8 and --calib-data of arrays: these are no normalised pictures. Give a folder.")
    return pictures


def taken(images: Images, most: int, least: int = 1) -> list[Row]:
    """Read up to so many images, one row each.

    Raises:
        ExportError: fewer than ``least`` of them can be read, or one does not fit.
    """
    try:
        rows: list[Row] = [*islice(images, most)]
    except InputError as error:
        raise ExportError(str(error)) from error
    if not rows:
        raise ExportError(f"calibration images, {images.description}: none of them can be read.")
    if len(rows) < least:
        raise ExportError(
            f"calibration images, {images.description}: {len(rows)} of them can be read, the fixed batch takes {least}."
            " Give more, or mend those."
        )
    return rows
