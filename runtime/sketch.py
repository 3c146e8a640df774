"""A few of a tensor's values, spread over all its channels: enough to know its noise again, small enough to keep."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_KEPT = 4096  # values of a tensor, or 4 of each channel where that is more
_LEAST = 4


def sketch(values: npt.NDArray[Any]) -> Floats:
    """Take the same places of every tensor of one shape.

    Args:
        values: ``(N, C, …)``; N rows, C channels. An array of one axis is one channel.

    Returns:
        ``(C, K)`` float32: K values of each channel, evenly spread over rows and places.
    """
    channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1) if values.ndim > 1 else values.reshape(1, -1)
    count = channels.shape[1]
    kept = min(count, max(_LEAST, _KEPT // len(channels)))
    return np.ascontiguousarray(channels[:, np.arange(kept) * count // kept], np.float32)
