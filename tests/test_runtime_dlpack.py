"""Arrays from and to other libraries: looked at without a copy, and what cannot be is refused by name."""

import gc
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import InputError, dlpack
from engineworks.runtime.cuda import Device, open_driver
from engineworks.runtime.dlpack import CPU, DeviceArray, is_on_device, make_capsule, on_host, view


class Foreign:
    """An array that speaks DLPack; numpy's own capsule stands for one of a GPU's."""

    def __init__(self, array: Any, place: tuple[int, int] = (2, 0), error: Exception | None = None) -> None:
        self.array, self.place, self.error = array, place, error
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        self.streams.append(stream)
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32", "int64", "bool"])
def test_a_capsule_is_looked_at_without_a_copy(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    foreign = Foreign(array)
    seen = view("x", foreign, 77)
    assert (seen.address, seen.shape, seen.dtype, seen.wait) == (array.ctypes.data, (2, 3), array.dtype, None)
    assert seen.nbytes == array.nbytes
    assert foreign.streams == [77], "the owner makes our stream wait for its own"


def test_a_view_keeps_its_owners_memory() -> None:
    array = np.zeros(4, np.float32)
    seen = view("x", Foreign(array[:]), 0)
    count = __import__("sys").getrefcount(array)
    del seen
    gc.collect()
    assert __import__("sys").getrefcount(array) == count - 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3), np.float32).T, "input 'x': expected a contiguous array"),
        (np.zeros((4, 6), np.float32)[:, ::2], "input 'x': expected a contiguous array"),
        (np.zeros(3, np.complex64), r"input 'x': its type \(DLPack code 5\) has no numpy equivalent"),
    ],
)
def test_what_cannot_be_read_in_place_is_refused(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        view("x", Foreign(array), 0)


def test_an_axis_of_one_may_have_any_stride() -> None:
    assert view("x", Foreign(np.zeros((4, 1, 3), np.float32)[:, :, :].transpose(1, 0, 2)), 0).shape == (1, 4, 3)


def test_what_the_owner_says_is_told() -> None:
    foreign = Foreign(None, error=BufferError("Can't export tensors that require gradient"))
    with pytest.raises(InputError, match=r"'x': Foreign gives no DLPack capsule: Can't export tensors that require"):
        view("x", foreign, 0)


def test_arrays_are_sorted_by_where_they_lie() -> None:
    assert not is_on_device(np.zeros(1))
    assert not is_on_device([1.0])
    assert is_on_device(Foreign(np.zeros(1)))
    assert not is_on_device(Foreign(np.zeros(1), (CPU, 0)))
    assert is_on_device(type("Cupy", (), {"__cuda_array_interface__": {}})())


def test_arrays_on_the_host_are_looked_at_without_a_copy() -> None:
    array = np.arange(3.0)
    assert on_host("x", array) is array
    assert on_host("x", Foreign(array, (CPU, 0))).ctypes.data == array.ctypes.data
    with pytest.raises(InputError, match=r"input 'x': expected a numpy array or one with __dlpack__, got list"):
        on_host("x", [1.0])


class Producer:
    """What a consumer such as numpy asks of an output, in host memory."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0

    def __dlpack__(self, **_: Any) -> Any:
        array = self.array
        return make_capsule(array.ctypes.data, array.shape, array.dtype, (CPU, 0), array)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), (5,), (1, 1, 4), (0, 3)])
def test_a_consumer_takes_our_capsule_without_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    before = len(dlpack._held)
    taken = np.from_dlpack(Producer(array))
    assert np.array_equal(taken, array) and (taken.ctypes.data == array.ctypes.data or not array.size)
    assert len(dlpack._held) == before + 1
    del taken
    gc.collect()
    assert len(dlpack._held) == before


def test_a_capsule_that_nobody_takes_is_forgotten_with_its_owner() -> None:
    before = len(dlpack._held)
    capsule = Producer(np.zeros(3)).__dlpack__()
    assert len(dlpack._held) == before + 1
    del capsule
    gc.collect()
    assert len(dlpack._held) == before


@pytest.mark.slow
def test_torch_takes_our_capsule() -> None:
    torch = pytest.importorskip("torch")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    taken = torch.from_dlpack(Producer(array))
    assert taken.tolist() == array.tolist() and taken.data_ptr() == array.ctypes.data


def test_an_output_says_where_it_lies_and_that_it_is_complete(fake_host: Any) -> None:
    device = Device(open_driver(), 0)
    array = DeviceArray(device, fake_host.driver.new(np.arange(6, dtype=np.float32).tobytes()), (2, 3), "float32")
    interface = array.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"], interface["stream"]) == ((2, 3), "<f4", None)
    assert array.__dlpack_device__() == (2, 0)
    seen = view("x", array, 5)
    assert (seen.address, seen.shape, seen.dtype) == (array.address, (2, 3), np.dtype("float32"))
    assert array.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    del array
    gc.collect()
    assert fake_host.driver.leaks() == {"device memory": 1}, "whoever holds the capsule holds the memory"
    del seen
    gc.collect()
    assert fake_host.driver.leaks() == {}
