"""Arrays on a GPU, in and out: DLPack and ``__cuda_array_interface__``, read and given with ctypes alone.

DLPack (dmlc/dlpack, ABI of version 0.x: ``dltensor`` capsules) is what torch, CuPy and JAX speak. A consumer passes the
stream it will read on, and the producer makes that stream wait: so nobody waits on the host.
"""

import ctypes
import weakref
from contextlib import suppress
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.cuda import Device
from engineworks.runtime.errors import CudaError, InputError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # dlpack.h, DLDeviceType
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # dlpack.h, DLDataTypeCode; 4 is bfloat16, which numpy has not
_CODES = {kind: code for code, kind in _KINDS.items()}


class _Tensor(Structure):
    """``DLTensor``."""

    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(Structure):
    """``DLManagedTensor``."""

    _fields_ = (("tensor", _Tensor), ("manager", c_void_p), ("deleter", c_void_p))


_api = ctypes.pythonapi
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", _api))
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", _api))
_is_valid = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_pointer_of = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))


@dataclass(frozen=True)
class View:
    """Somebody's array on a GPU; ``owner`` keeps it alive, ``wait`` is a stream whose work must come first."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any
    wait: int | None = None

    @property
    def nbytes(self) -> int:
        """The size of its elements."""
        return prod(self.shape) * self.dtype.itemsize


def is_on_device(value: Any) -> bool:
    """Tell whether an array lies in GPU memory."""
    ask = getattr(value, "__dlpack_device__", None)
    if ask is not None:
        return int(ask()[0]) in {CUDA, CUDA_MANAGED}
    return hasattr(value, "__cuda_array_interface__")


def on_host(name: str, value: Any) -> npt.NDArray[Any]:
    """Look at an array on the host (numpy's, or a torch tensor on the CPU) without copying it.

    Raises:
        InputError: it is no array.
    """
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        raise InputError(f"input {name!r}: expected a numpy array or one with __dlpack__, got {type(value).__name__}.")
    array: npt.NDArray[Any] = np.from_dlpack(value)
    return array


def view(name: str, value: Any, stream: int) -> View:
    """Look at an array on a GPU without copying it; ``stream`` is made to wait, or ``View.wait`` says for whom it must.

    Raises:
        InputError: it is not contiguous, of a type that numpy has no name for, or its owner does not give it.
    """
    if not hasattr(value, "__dlpack__"):
        return _from_interface(name, value.__cuda_array_interface__)
    try:
        capsule = value.__dlpack__(stream=stream)
    except Exception as error:  # a tensor that needs its gradient, or one that is conjugated: its owner's own words
        raise InputError(f"input {name!r}: {type(value).__name__} gives no DLPack capsule: {error}") from error
    return _from_capsule(name, capsule)


def _from_capsule(name: str, capsule: Any) -> View:
    pointer = _get_pointer(capsule, b"dltensor")
    tensor = ctypes.cast(pointer, POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise InputError(f"input {name!r}: its type (DLPack code {tensor.code}) has no numpy equivalent. Convert it.")
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    if tensor.strides and not _is_contiguous(shape, tuple(tensor.strides[axis] for axis in range(tensor.ndim))):
        raise InputError(f"input {name!r}: expected a contiguous array. Call its contiguous() first.")
    return View((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule)


def _from_interface(name: str, interface: dict[str, Any]) -> View:
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and not _is_contiguous(shape, tuple(step // dtype.itemsize for step in strides)):
        raise InputError(f"input {name!r}: expected a contiguous array. Copy it first.")
    return View(int(interface["data"][0]), shape, dtype, interface, interface.get("stream"))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


class DeviceArray:
    """An output on a GPU. It owns its memory, which is freed with the last reference to it; it is complete."""

    def __init__(self, device: Device, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.address, self.shape, self.dtype, self.device = address, shape, np.dtype(dtype), device
        weakref.finalize(self, _free, device, address)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; ``stream`` None: nothing is pending."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device.index

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """Give a DLPack capsule; the array is complete, so the consumer's stream need not wait."""
        return make_capsule(self.address, self.shape, self.dtype, self.__dlpack_device__(), self)

    def numpy(self) -> npt.NDArray[Any]:
        """Copy it to the host."""
        size = prod(self.shape) * self.dtype.itemsize
        array: npt.NDArray[Any] = np.empty(self.shape, self.dtype)
        with self.device.current():
            pinned, stream = self.device.allocate_host(size), self.device.make_stream()
            try:
                self.device.to_host(pinned, self.address, size, stream)
                self.device.synchronise(stream)
                ctypes.memmove(array.ctypes.data, pinned, size)
            finally:
                self.device.destroy_stream(stream)
                self.device.free_host(pinned)
        return array


def _free(device: Device, address: int) -> None:
    with suppress(CudaError), device.current():  # a lost GPU takes nothing back, and has nothing left
        device.free(address)


# --- a capsule: the struct lives here until its deleter is called, by the consumer or by the capsule's own destructor

_held: dict[int, tuple[Any, ...]] = {}


def make_capsule(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], place: tuple[int, int], owner: Any) -> Any:
    """Make a ``dltensor`` capsule of contiguous memory; ``owner`` lives as long as somebody uses it."""
    sizes = (c_int64 * max(len(shape), 1))(*shape)
    code, bits = _CODES[dtype.kind], dtype.itemsize * 8
    tensor = _Tensor(address, *place, len(shape), code, bits, 1, sizes, None, 0)
    managed = _Managed(tensor, None, ctypes.cast(_delete, c_void_p))
    pointer = ctypes.addressof(managed)
    _held[pointer] = (managed, sizes, owner)
    return _new_capsule(pointer, b"dltensor", ctypes.cast(_destroy, c_void_p))


def _forget(pointer: int) -> None:
    _held.pop(pointer, None)


def _forget_unused(capsule: int) -> None:
    """Free what no consumer took: a consumer renames the capsule."""
    if _is_valid(capsule, b"dltensor"):
        _held.pop(_pointer_of(capsule, b"dltensor"), None)


_delete = ctypes.PYFUNCTYPE(None, c_void_p)(_forget)
_destroy = ctypes.PYFUNCTYPE(None, c_void_p)(_forget_unused)
