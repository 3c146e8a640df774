"""Calibration data of one's own: ``export-model lenet5 --int8 --calib-data examples/calibration.py:digits``.

A factory returns any list of pictures: files, PIL images or uint8 arrays; with their classes, pairs.
"""

import numpy as np
import numpy.typing as npt

from engineworks.models import samples


def digits() -> list[npt.NDArray[np.uint8]]:
    """Return 200 handwritten digits, as they came: ``(28, 28)`` uint8, ink on black."""
    return list(samples.digits()[0])
