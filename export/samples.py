"""The inputs on which every rung is compared: real where the network takes pictures, and never all alike.

Crops of a real photograph for colour networks, handwritten digits for grey ones, prepared by the one function that
serves every stage.
"""

import numpy as np
import numpy.typing as npt

from engineworks.runtime.preprocessing import Preprocessing, preprocess

SAMPLES = 8
Floats = npt.NDArray[np.float32]


def sample_inputs(recipe: Preprocessing) -> Floats:
    """Return 8 different rows ``(8, C, H, W)`` float32, prepared as ``recipe`` says; the same every time."""
    pictures = _digits() if recipe.mode == "L" else _crops()
    return preprocess(pictures, recipe)


def rows(samples: Floats, batch: int) -> Floats:
    """Repeat or cut the samples to ``batch`` rows."""
    return np.take(samples, np.arange(batch) % len(samples), axis=0)


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
