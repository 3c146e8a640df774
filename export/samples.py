"""The inputs on which every rung is compared: real where the network takes pictures, and never all alike.

Crops of a real photograph for colour networks, handwritten digits for grey ones, prepared by the one function that
serves every stage; a file of the user's own where one is given; random numbers where nothing is known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.export.inputs import InputSpec
from engineworks.runtime.errors import ExportError
from engineworks.runtime.preprocessing import Preprocessing, preprocess

SAMPLES = 8
Array = npt.NDArray[Any]
_SEED = 0
_LARGEST_INDEX = 2  # random whole numbers are 0 and 1: the only ones that every table of indices has


def samples_for(
    inputs: Sequence[InputSpec], preprocessing: Mapping[str, Any] | None, file: str | None
) -> tuple[dict[str, Array], str]:
    """Return rows for every input, and what they are in words.

    Args:
        inputs: what the network takes; with ``in_graph`` preprocessing, what it takes behind it.
        preprocessing: as a manifest has it; None where the inputs are no prepared pictures.
        file: a ``.npz`` with 2 or more rows for each input, by its name; None for samples of our own.

    Raises:
        ExportError: a file that lacks an input, or whose arrays do not fit.
    """
    if file is not None:
        return _from_file(Path(file), inputs), f"rows of {Path(file).name}"
    if preprocessing is not None:
        return {inputs[0].name: sample_inputs(Preprocessing.from_json(preprocessing))}, "pictures"
    generator = np.random.default_rng(_SEED)
    made = {spec.name: _pictures(spec) if _is_picture(spec) else _random(spec, generator) for spec in inputs}
    words = dict.fromkeys(_words(spec) for spec in inputs)
    return made, f"{', '.join(words)} (--samples FILE.npz gives your own)"


def sample_inputs(recipe: Preprocessing) -> Array:
    """Return 8 different rows, prepared as ``recipe`` says; the same every time."""
    pictures = _digits() if recipe.mode == "L" else _crops()
    return preprocess(pictures, recipe)


def rows(samples: npt.NDArray[Any], batch: int) -> npt.NDArray[Any]:
    """Repeat or cut the samples to ``batch`` rows."""
    return np.take(samples, np.arange(batch) % len(samples), axis=0)


def _is_picture(spec: InputSpec) -> bool:
    return spec.dtype == "float32" and len(spec.shape) == 3 and spec.shape[0] in {1, 3}


def _words(spec: InputSpec) -> str:
    if _is_picture(spec):
        return "pictures of about mean 0 and spread 1"
    if spec.dtype == "float32":
        return "random numbers of mean 0 and spread 1"
    return "random bytes" if spec.dtype == "uint8" else "random zeros and ones"


def _pictures(spec: InputSpec) -> Array:
    channels, height, width = spec.shape
    recipe = Preprocessing(
        "RGB" if channels == 3 else "L", (height, width), "bilinear", None, 0, (0.45,) * channels, (0.25,) * channels
    )
    return sample_inputs(recipe)


def _random(spec: InputSpec, generator: np.random.Generator) -> Array:
    shape = (SAMPLES, *spec.shape)
    if spec.dtype == "float32":
        return generator.standard_normal(shape, np.float32)
    if spec.dtype == "uint8":
        return generator.integers(0, 256, shape, np.uint8)
    return generator.integers(0, _LARGEST_INDEX, shape).astype(spec.dtype)


def _from_file(file: Path, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except Exception as error:  # zipfile's and numpy's own, for whatever else the file is
        raise ExportError(f"--samples {file.name}: expected a .npz of arrays ({error}).") from error
    names = [spec.name for spec in inputs]
    if sorted(arrays) != sorted(names):
        raise ExportError(f"--samples {file.name}: expected arrays {', '.join(names)}; got {', '.join(arrays)}.")
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    for spec in inputs:
        array = arrays[spec.name]
        if array.shape[1:] != spec.shape or array.dtype != spec.dtype or len(counts) != 1 or min(counts) < 2:
            raise ExportError(
                f"--samples {file.name}: expected {spec} with N of 2 or more for all; got {array.dtype} {array.shape}."
            )
    return {spec.name: np.ascontiguousarray(arrays[spec.name]) for spec in inputs}


def _digits() -> list[npt.NDArray[np.uint8]]:
    from engineworks.models.samples import digits

    return list(digits()[0][:SAMPLES])


def _crops() -> list[npt.NDArray[np.uint8]]:
    """Cut the photograph into overlapping squares, every other one mirrored."""
    from PIL import Image

    from engineworks.models.samples import photograph

    with Image.open(photograph()) as image:
        pixels = np.asarray(image.convert("RGB"), np.uint8)
    side = min(pixels.shape[:2]) * 3 // 4
    down, right = pixels.shape[0] - side, pixels.shape[1] - side
    corners = [(down * (i % 2), right * (i // 2) // 3) for i in range(SAMPLES)]
    squares = [pixels[top : top + side, left : left + side] for top, left in corners]
    return [np.ascontiguousarray(square[:, ::-1] if i % 2 else square) for i, square in enumerate(squares)]
