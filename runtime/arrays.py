"""Arrays in and out: numpy, torch, and whatever else speaks DLPack. Torch is found if it is there, never imported.

Who passes torch tensors gets tensors on the same device; who passes anything else gets numpy arrays, which every
library that speaks DLPack takes without a copy.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import InputError

Array = npt.NDArray[Any]
Give = Callable[[Array], Any]
"""Turns an answer into the kind of array that the question was."""


class SupportsDLPack(Protocol):
    """An array of another library: cupy, jax, tensorflow…"""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Give the array's memory as a DLPack capsule."""

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Tell the kind and the number of the device that the memory is on."""


def as_numpy(name: str, value: Any, wanted: str) -> Array:
    """Return ``value`` as a numpy array; without a copy where its memory is the host's.

    Args:
        name: of the input, for messages.
        value: a numpy array, a torch tensor, or anything with ``__dlpack__``.
        wanted: what the network takes, in words, for messages.

    Raises:
        InputError: no array, a masked one, or one of a dtype, layout or device that numpy cannot read.
    """
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise InputError(f"input {name!r}: expected {wanted}, got a masked array. Fill it: x.filled(value).")
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {name!r}: expected an array {wanted}, got {type(value).__name__}. Make it one: np.asarray(x)."
        )
    try:
        if is_tensor(value):
            tensor: Array = value.detach().cpu().numpy()
            return tensor
        return _from_dlpack(value)
    except Exception as error:  # every library raises its own: TypeError, BufferError, RuntimeError…
        kind = f"{type(value).__module__.split('.')[0]} {getattr(value, 'dtype', '')}".strip()
        told = str(error).strip().split("\n")[0]
        raise InputError(
            f"input {name!r}: expected {wanted}, got {kind} that numpy cannot read ({told}). Convert it first."
        ) from error


def giver(values: Iterable[Any]) -> Give | None:
    """Return what turns the answers into the callers' kind; None where they stay numpy.

    Raises:
        InputError: tensors beside other arrays, or tensors on several devices: the answer's kind would be a guess.
    """
    places = {str(value.device) if is_tensor(value) else "" for value in values}
    if len(places) > 1:
        told = ", ".join(sorted(f"torch on {place}" if place else "numpy" for place in places))
        raise InputError(f"infer: expected all inputs of one kind and on one device, got {told}.")
    place = places.pop() if places else ""
    return _to_torch(place) if place else None


def kept(array: Array, given: Any) -> Array:
    """Return an array that its giver cannot change any more: itself where it is ours or made of ``bytes``, or a copy.

    Args:
        array: what ``as_numpy`` made of ``given``, perhaps made contiguous.
        given: what the caller passed.
    """
    if array is not given and array.flags.owndata:
        return array
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return array if isinstance(owner, bytes) else array.copy()


def _to_torch(device: str) -> Give:
    torch = sys.modules["torch"]
    return lambda array: torch.from_numpy(array).to(device)


def is_tensor(value: Any) -> bool:
    """Tell whether it is one of torch's."""
    if isinstance(value, np.ndarray):
        return False
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "Tensor") and isinstance(value, torch.Tensor)


def _from_dlpack(value: Any) -> Array:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return np.from_dlpack(value, device="cpu")  # memory of a GPU: a library of DLPack 1.0 copies it itself
