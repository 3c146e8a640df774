"""The NVIDIA driver through ctypes: what GPUs there are, and memory, streams, events and graphs on one of them.

Nothing here needs torch, a CUDA toolkit or a Python binding, and nothing else in the project probes for a GPU. Only
``libcuda.so.1`` is opened, which is the driver itself. The prototypes below are held against the driver's header by a
test, ``tests/snapshots/cuda-driver-*.json``.
"""

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from dataclasses import dataclass, field
from typing import Any

from engineworks.runtime.errors import BackendError, CudaError

LIBRARY = "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # cuda.h, CUdevice_attribute
_NON_BLOCKING = 1  # CUstream_flags: the stream does not wait for the legacy default stream
_DISABLE_TIMING = 2  # CUevent_flags
_THREAD_LOCAL = 1  # CUstreamCaptureMode: other threads go on as they like
_POINTER_DEVICE = 9  # CUpointer_attribute

PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}


@dataclass(frozen=True)
class Gpu:
    """One GPU: its ``target`` such as ``sm89``, name and memory; or ``target`` None and the ``problem``."""

    target: str | None
    problem: str = ""
    name: str = ""
    index: int = 0
    memory_mib: int = field(default=0, compare=False)

    @property
    def capability(self) -> tuple[int, int] | None:
        """Its compute capability, such as (8, 9)."""
        return (int(self.target[2:-1]), int(self.target[-1])) if self.target else None


@dataclass(frozen=True)
class Gpus:
    """What the driver says: its GPUs, the CUDA version it serves (``13.0``), and why there is no GPU where so."""

    gpus: tuple[Gpu, ...]
    cuda: str | None = None
    problem: str = ""


def probe_gpus() -> Gpus:
    """Ask the NVIDIA driver for its GPUs, without any other library of CUDA or TensorRT; never raises."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        absent = "cannot open shared object" in str(error) or LIBRARY not in str(error)
        return Gpus((), None, f"no NVIDIA driver ({LIBRARY} {'is not found' if absent else f'does not load: {error}'})")
    version, count = c_int(), c_int()
    status = library.cuDriverGetVersion(byref(version))
    served = None if status else f"{version.value // 1000}.{version.value % 1000 // 10}"
    status = library.cuInit(0)
    if status:
        return Gpus((), served, f"the NVIDIA driver finds no usable GPU (cuInit gave error {status})")
    status = library.cuDeviceGetCount(byref(count))
    if status or not count.value:
        shown = 0 if status else count.value
        return Gpus((), served, f"the NVIDIA driver shows {shown} GPUs (cuDeviceGetCount gave error {status})")
    gpus = tuple(_describe(library, index) for index in range(count.value))
    return Gpus(gpus, served, next((gpu.problem for gpu in gpus if gpu.problem), ""))


def probe_gpu(index: int = 0) -> Gpu:
    """Ask the NVIDIA driver for one GPU; never raises: where there is none, ``problem`` says why."""
    found = probe_gpus()
    if index < len(found.gpus):
        return found.gpus[index]
    have = f"this host has {len(found.gpus)} GPUs, and none is number {index}"
    return Gpu(None, have if found.gpus else found.problem, index=index)


def _describe(library: Any, index: int) -> Gpu:
    device, major, minor = c_int(), c_int(), c_int()
    name = ctypes.create_string_buffer(256)
    status = library.cuDeviceGet(byref(device), index)
    status = status or library.cuDeviceGetAttribute(byref(major), CAPABILITY_MAJOR, device)
    status = status or library.cuDeviceGetAttribute(byref(minor), CAPABILITY_MINOR, device)
    if status:
        return Gpu(
            None, f"the NVIDIA driver does not tell GPU {index}'s compute capability (error {status})", "", index
        )
    memory = c_size_t()
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(byref(memory), device)
    told = name.value.decode(errors="replace")
    return Gpu(f"sm{major.value}{minor.value}", "", told, index, memory.value >> 20)


class Driver:
    """The driver's functions, each with its prototype and each answer checked."""

    def __init__(self, library: Any) -> None:
        self._functions = {name: _bind(library, name, types) for name, types in PROTOTYPES.items()}
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call one function.

        Raises:
            CudaError: it answered anything but success.
        """
        status = self._functions[name](*arguments)
        if status:
            raise CudaError(name, status, self._words(status))

    def _words(self, status: int) -> str:
        text = c_char_p()
        if self._functions["cuGetErrorString"](status, byref(text)) or not text.value:
            return "unknown error"
        return text.value.decode(errors="replace")


def open_driver() -> Driver:
    """Bind the driver.

    Raises:
        BackendError: there is none, or it is too old.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendError(probe_gpus().problem or str(error)) from error
    return Driver(library)


def _bind(library: Any, name: str, types: tuple[Any, ...]) -> Any:
    function = getattr(library, name, None)
    if function is None:
        raise BackendError(f"the NVIDIA driver has no {name}: it is older than CUDA 11.4. Update the driver.")
    function.argtypes, function.restype = types, c_int
    return function


class Device:
    """One GPU's primary context, which torch and every CUDA library of this process share.

    Everything below wants the context current: do it inside ``with device.current()``.
    """

    def __init__(self, driver: Driver, index: int) -> None:
        self.driver, self.index = driver, index
        number, context = c_int(), c_void_p()
        driver.call("cuDeviceGet", byref(number), index)
        driver.call("cuDevicePrimaryCtxRetain", byref(context), number)
        self._context = context
        weakref.finalize(self, _release, driver, number.value)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's current one, and give the thread back what it had."""
        self.driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        except BaseException:
            with suppress(CudaError):  # what went wrong first is being raised
                self.driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))
            raise
        self.driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of device memory."""
        address = c_uint64()
        self.driver.call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        """Free device memory, once everything that the GPU was given to do is done."""
        self.driver.call("cuMemFree_v2", address)

    def allocate_host(self, size: int) -> int:
        """Return the address of ``size`` bytes of host memory that the GPU copies from and to by itself."""
        return self._handle("cuMemAllocHost_v2", size)

    def free_host(self, address: int) -> None:
        """Free what ``allocate_host`` gave."""
        self.driver.call("cuMemFreeHost", address)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy from pinned host memory."""
        self.driver.call("cuMemcpyHtoDAsync_v2", target, source, size, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy to pinned host memory."""
        self.driver.call("cuMemcpyDtoHAsync_v2", target, source, size, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy within device memory."""
        self.driver.call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def owner_of(self, address: int) -> int:
        """Return the number of the GPU whose memory this is."""
        number = c_int()
        self.driver.call("cuPointerGetAttribute", byref(number), _POINTER_DEVICE, address)
        return number.value

    def make_stream(self) -> int:
        """Return a new stream, which waits for no other."""
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self.driver.call("cuStreamDestroy_v2", stream)

    def synchronise(self, stream: int) -> None:
        """Wait until everything queued on the stream is done; errors of that work are raised here."""
        self.driver.call("cuStreamSynchronize", stream)

    def wait_for(self, stream: int, other: int) -> None:
        """Let ``stream`` wait for all that is queued on ``other`` now; the host does not wait."""
        event = self._handle("cuEventCreate", _DISABLE_TIMING)
        try:
            self.driver.call("cuEventRecord", event, other)
            self.driver.call("cuStreamWaitEvent", stream, event, 0)
        finally:
            self.driver.call("cuEventDestroy_v2", event)  # the driver keeps it until it has come

    @contextmanager
    def captured(self, stream: int, graph: list[int]) -> Iterator[None]:
        """Record what the block queues on the stream instead of doing it; ``graph`` then holds one launchable graph.

        If the block or the driver fails, nothing was recorded and the stream is as before.
        """
        self.driver.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            yield
        except BaseException:
            self._end_capture_quietly(stream)
            raise
        recorded = self._handle("cuStreamEndCapture", stream, last=True)
        try:
            graph.append(self._handle("cuGraphInstantiateWithFlags", recorded, 0))
        finally:
            self.driver.call("cuGraphDestroy", recorded)

    def launch(self, graph: int, stream: int) -> None:
        """Queue a captured graph."""
        self.driver.call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Give a captured graph back."""
        self.driver.call("cuGraphExecDestroy", graph)

    def _end_capture_quietly(self, stream: int) -> None:
        with suppress(CudaError):  # the capture was broken already: what broke it is being raised
            recorded = self._handle("cuStreamEndCapture", stream, last=True)
            if recorded:
                self.driver.call("cuGraphDestroy", recorded)

    def _handle(self, function: str, *arguments: Any, last: bool = False) -> int:
        """Call a function that gives a handle through its first argument, or its last."""
        handle = c_void_p()
        pointer = byref(handle)
        self.driver.call(function, *((*arguments, pointer) if last else (pointer, *arguments)))
        return handle.value or 0


def _release(driver: Driver, number: int) -> None:
    with suppress(CudaError):  # the process ends, or the GPU is lost: nothing is left to give back
        driver.call("cuDevicePrimaryCtxRelease_v2", number)
