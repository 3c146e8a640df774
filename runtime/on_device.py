"""Arrays that already lie on the session's GPU: looked at without being read, and left where they are.

What the checks ask of an array is its dtype and shape, so they are shown a numpy array of those that has no memory of
its own. Torch is found if it is there, never imported.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.arrays import is_tensor
from engineworks.runtime.dlpack import is_on_device

Array = npt.NDArray[Any]


def lie_on(given: Mapping[str, Any], device: str) -> bool:
    """Tell whether some of the arrays lie on this GPU, contiguous, and none on another.

    Args:
        given: arrays of any kind, by name.
        device: the session's, ``cpu`` or ``cuda:N``.
    """
    if not device.startswith("cuda:"):
        return False
    there = [value for value in given.values() if not isinstance(value, np.ndarray) and is_on_device(value)]
    return bool(there) and all(_number(value) in {None, int(device[5:])} and _is_plain(value) for value in there)


def outline(value: Any) -> Array:
    """Return an array of the same dtype and shape, for whoever looks at those alone; one on the host as it is.

    Raises:
        TypeError: numpy has no such dtype.
    """
    if isinstance(value, np.ndarray) or not is_on_device(value):
        return np.asarray(value) if isinstance(value, np.ndarray) else np.from_dlpack(value)
    if hasattr(value, "dtype"):
        dtype = np.dtype(str(value.dtype).removeprefix("torch."))
        return np.broadcast_to(np.zeros((), dtype), tuple(value.shape))
    interface = value.__cuda_array_interface__
    return np.broadcast_to(np.zeros((), interface["typestr"]), tuple(interface["shape"]))


def laid_out(value: Any) -> Any:
    """Return a tensor without its history and contiguous, copied on its GPU where it is not; others as they are."""
    return value.detach().contiguous() if is_tensor(value) else value


def as_tensor(output: Any) -> Any:
    """Return an output on a GPU as a torch tensor of the same memory."""
    return sys.modules["torch"].from_dlpack(output)


def _number(value: Any) -> int | None:
    """Return the number of its GPU; None where only the driver can tell, which the session asks."""
    ask = getattr(value, "__dlpack_device__", None)
    return int(ask()[1]) if ask is not None else None


def _is_plain(value: Any) -> bool:
    """Whether numpy has its dtype, and its memory is one piece or can be made so; else it goes by the host."""
    try:
        if outline(value).dtype.isbuiltin != 1:  # ml_dtypes, once imported, teaches numpy bfloat16 by name
            return False
    except TypeError:
        return False
    if is_tensor(value):
        return True
    return getattr(value, "__cuda_array_interface__", {"strides": None}).get("strides") is None
