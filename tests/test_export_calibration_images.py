"""The images that INT8 is calibrated with: opened, divided, held out; what does not suffice is said at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.export.calibration_images import (
    divided,
    fixed_rows,
    held_out_samples,
    normalised_before,
    open_calibration,
    taken,
)
from engineworks.export.inputs import InputSpec
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch
from engineworks.runtime.preprocessing import normalise

SPEC = InputSpec("x", (3, 4, 4))
RECIPE: dict[str, Any] = {
    "mode": "RGB", "resize": None, "interpolation": "bilinear", "crop": None, "pad": 0, "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4], "in_graph": True,
}  # fmt: skip


def recipe(data: Path, **more: Any) -> Recipe:
    fields: dict[str, Any] = {"model": "net.py:make", "precision": "int8", "calib_data": str(data), "calib_images": 16}
    return Recipe(**fields | more)


def rows(folder: Path, count: int = 16) -> npt.NDArray[np.uint8]:
    """Write normalised pictures into ``rows.npz``; return the pictures."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    known = normalised_before(RECIPE)
    assert known is not None
    np.savez(folder / "rows.npz", x=normalise(pictures, known))
    return pictures


def opened(asked: Recipe) -> Any:
    return open_calibration(asked, [SPEC], None, pytest.fail)


def test_a_quarter_is_held_out_and_no_image_is_in_both_parts(tmp_path: Path) -> None:
    rows(tmp_path)
    asked = recipe(tmp_path / "rows.npz")
    fit, held = divided(opened(asked), asked)
    first, second = taken(fit, 100), taken(held, 100)
    assert (len(first), len(second)) == (12, 4)
    seen = {row["x"].tobytes() for row in first} | {row["x"].tobytes() for row in second}
    assert len(seen) == 16


@pytest.mark.parametrize(("batch", "each"), [(Batch(1, 4, 8), 1), (Batch(6, 6, 6), 6)])
def test_a_fixed_batch_is_what_every_run_takes(tmp_path: Path, batch: Batch, each: int) -> None:
    rows(tmp_path)
    asked = recipe(tmp_path / "rows.npz", batch=batch)
    assert fixed_rows(asked) == each
    assert len(taken(divided(opened(asked), asked)[1], 100)) >= each


def test_too_few_for_two_fixed_batches_are_refused_with_the_number_and_the_mend(tmp_path: Path) -> None:
    rows(tmp_path)
    with pytest.raises(ExportError, match=r"18 or more are needed.*Give as many and --calib-images 18, or another"):
        opened(recipe(tmp_path / "rows.npz", batch=Batch(9, 9, 9)))


def test_data_that_is_not_there_is_an_error_of_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected an existing folder"):
        opened(recipe(tmp_path / "nowhere.txt"))


def test_fewer_than_needed_are_told(tmp_path: Path) -> None:
    rows(tmp_path)
    images = opened(recipe(tmp_path / "rows.npz"))
    with pytest.raises(ExportError, match=r"3 of them can be read, the fixed batch takes 4"):
        taken(images, 3, 4)


def test_the_samples_are_the_first_eight_held_out_as_pictures_again_where_those_are_wanted(tmp_path: Path) -> None:
    pictures = rows(tmp_path, 64)
    asked = recipe(tmp_path / "rows.npz", calib_images=64)
    held = divided(opened(asked), asked)[1]
    prepared, again = held_out_samples(held)["x"], held_out_samples(held, normalised_before(RECIPE))["x"]
    assert prepared.shape == (8, 3, 4, 4) and prepared.dtype == np.float32
    assert again.dtype == np.uint8
    known = {picture.tobytes() for picture in pictures}
    assert all(picture.tobytes() in known for picture in again)


def test_arrays_that_are_no_pictures_are_not_turned_into_some(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32))
    asked = recipe(tmp_path / "rows.npz")
    held = divided(opened(asked), asked)[1]
    with pytest.raises(ExportError, match="these are no normalised pictures"):
        held_out_samples(held, normalised_before(RECIPE))


def test_what_is_known_of_pictures_is_told_as_it_is_before_the_head() -> None:
    known = normalised_before(RECIPE)
    assert known is not None and not known.in_graph
    assert replace(known, in_graph=True).to_json()["mean"] == RECIPE["mean"]
    assert normalised_before(None) is None
