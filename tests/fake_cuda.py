"""A stand-in for ``libcuda.so.1`` that does its work as late as the real one may.

Names that the recorded header lacks raise AttributeError. Device memory is a heap of byte arrays with addresses; what
is queued on a stream runs only when somebody waits for it, so a wait that is missing gives a wrong answer, not a lucky
one. Memory that was freed, never given or too short, a host address that is not pinned, and two uses of one execution
context at once are faults: they raise, and stay in ``faults``.
"""

import ctypes
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SNAPSHOT: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "snapshots" / "cuda-driver-13.5.json").read_text("utf-8")
)["functions"]
ILLEGAL_ADDRESS, OUT_OF_MEMORY, INVALID, CAPTURE_UNSUPPORTED = 700, 2, 1, 900
STALE = 0xCD  # what fresh memory holds, so that an answer that was never written is seen

Work = Callable[[], None]


class Fault(AssertionError):
    """Something that the real driver would answer with garbage, or a crash."""


class Function:
    """One function of the library: it checks its arguments against the prototype that it was given."""

    def __init__(self, driver: "FakeDriver", name: str, does: Callable[..., int]) -> None:
        self.driver, self.name, self.does = driver, name, does
        self.argtypes: tuple[Any, ...] | None = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        if len(arguments) != len(SNAPSHOT[self.name]):
            raise Fault(f"{self.name}: expected {SNAPSHOT[self.name]}, got {arguments}")
        for kind, argument in zip(self.argtypes or (), arguments, strict=self.argtypes is not None):
            kind.from_param(argument)  # raises where ctypes would
        with self.driver.lock:
            self.driver.calls.append(self.name)
            queries = {"cuGetErrorString", "cuInit", "cuDriverGetVersion"}
            if self.driver.broken and self.name not in queries:
                return self.driver.broken
            status = self.driver.fails.pop(self.name, 0)
            if status:
                self.driver.broken = 0 if status in self.driver.passing else status
                if self.name == "cuStreamEndCapture":
                    self.driver.capturing.clear()
                return status
            return self.does(*map(plain, arguments))


def plain(argument: Any) -> Any:
    """A pointer as what it points to, a ctypes number as a number."""
    if hasattr(argument, "_obj"):
        return argument._obj
    return argument.value if isinstance(argument, (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64)) else argument


class FakeDriver:
    """The library: ``getattr`` gives a function for each name that the header has, and a behaviour here."""

    def __init__(self, gpus: list[tuple[str, int, int]] | None = None) -> None:
        self.gpus = [("NVIDIA L4", 8, 9)] if gpus is None else gpus
        self.lock = threading.RLock()
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}
        self.passing = {OUT_OF_MEMORY, CAPTURE_UNSUPPORTED}
        self.broken = 0
        self.faults: list[str] = []
        self.memory: dict[int, bytearray] = {}
        self.freed: dict[int, int] = {}
        self.pinned: dict[int, Any] = {}
        self.owners: dict[int, int] = {}
        self.streams: dict[int, list[Work]] = {0: [], 1: [], 2: []}
        self.events: dict[int, tuple[int, int]] = {}
        self.done: dict[int, int] = dict.fromkeys(self.streams, 0)
        self.graphs: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.contexts = 0
        self.current = threading.local()
        self.handles = itertools.count(0x1000)
        self.next_address = 0x7F00_0000_0000
        self.functions: dict[str, Function] = {}

    def __getattr__(self, name: str) -> Function:
        if name.startswith("_") or name not in SNAPSHOT:
            raise AttributeError(f"{name}: libcuda.so.1 has no such function")
        does = {**vars(type(self))}.get(f"_{name}")
        if does is None:
            raise NotImplementedError(f"the fake has no behaviour for {name}")
        return self.functions.setdefault(name, Function(self, name, does.__get__(self)))

    # --- what a test asks

    def new(self, content: bytes, device: int = 0) -> int:
        """Put bytes into device memory, as some other library would have."""
        address = self._take(len(content), device)
        self.memory[address][:] = content
        return address

    def queue(self, stream: int, work: Work) -> None:
        """Put work on a stream; it runs when somebody waits for it."""
        with self.lock:
            if stream not in self.streams:
                self.fault(f"work for a stream that is not there: {stream}")
            self.capturing.get(stream, self.streams[stream]).append(work)

    def read(self, address: int, size: int) -> bytes:
        """Read device memory, from within queued work."""
        memory, offset = self._find(address, size)
        return bytes(memory[offset : offset + size])

    def write(self, address: int, content: bytes) -> None:
        """Write device memory, from within queued work."""
        memory, offset = self._find(address, len(content))
        memory[offset : offset + len(content)] = content

    def leaks(self) -> dict[str, int]:
        """What was taken and not given back."""
        held = {
            "device memory": len(self.memory),
            "pinned memory": len(self.pinned),
            "streams": len(self.streams) - 3,
            "events": len(self.events),
            "graphs": len(self.graphs),
        }
        return {what: count for what, count in held.items() if count}

    def fault(self, words: str) -> None:
        """Keep and raise a fault."""
        self.faults.append(words)
        raise Fault(words)

    # --- the driver's functions

    def _cuInit(self, flags: int) -> int:
        return 0

    def _cuDriverGetVersion(self, version: Any) -> int:
        version.value = 13010
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:
        count.value = len(self.gpus)
        return 0

    def _cuDeviceGet(self, device: Any, index: int) -> int:
        device.value = index
        return 0 if index < len(self.gpus) else 101

    def _cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = self.gpus[device][0].encode()
        return 0

    def _cuDeviceTotalMem_v2(self, size: Any, device: int) -> int:
        size.value = 24 << 30
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value.value = self.gpus[device][{75: 1, 76: 2}[attribute]]
        return 0

    def _cuGetErrorString(self, status: int, text: Any) -> int:
        words = {ILLEGAL_ADDRESS: b"an illegal memory access was encountered", OUT_OF_MEMORY: b"out of memory"}
        text.value = words.get(status, b"something")
        return 0

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        self.contexts += 1
        context.value = 0xC0 + device
        return 0

    def _cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        self.contexts -= 1
        return 0

    def _stack(self) -> list[int]:
        if not hasattr(self.current, "stack"):
            self.current.stack = []
        stack: list[int] = self.current.stack
        return stack

    def _cuCtxPushCurrent_v2(self, context: int) -> int:
        self._stack().append(context)
        return 0

    def _cuCtxPopCurrent_v2(self, context: Any) -> int:
        context.value = self._stack().pop()
        return 0

    def _needs_context(self) -> None:
        if not self._stack():
            self.fault("no context is current in this thread")

    def _take(self, size: int, device: int) -> int:
        address = self.next_address
        self.next_address += (size + 0xFFF) // 0x1000 * 0x1000 + 0x1000
        self.memory[address] = bytearray([STALE]) * size
        self.owners[address] = device
        return address

    def _cuMemAlloc_v2(self, address: Any, size: int) -> int:
        self._needs_context()
        if size == 0:
            return INVALID
        address.value = self._take(size, self._stack()[-1] - 0xC0)
        return 0

    def _cuMemFree_v2(self, address: int) -> int:
        self._needs_context()
        if address not in self.memory:
            self.fault(f"freed twice, or never given: {address:#x}")
        for stream in list(self.streams):
            self._drain(stream)  # it waits for the whole device
        self.freed[address] = len(self.memory.pop(address))
        return 0

    def _cuMemAllocHost_v2(self, address: Any, size: int) -> int:
        self._needs_context()
        buffer = (ctypes.c_char * size)()
        address.value = ctypes.addressof(buffer)
        self.pinned[address.value] = buffer
        return 0

    def _cuMemFreeHost(self, address: int) -> int:
        self._needs_context()
        if self.pinned.pop(address, None) is None:
            self.fault("pinned memory freed twice, or never given")
        return 0

    def _cuPointerGetAttribute(self, value: Any, attribute: int, address: int) -> int:
        base = max((start for start in self.memory if start <= address), default=None)
        value.value = 0 if base is None else self.owners[base]
        return INVALID if base is None else 0

    def _pin(self, address: int, size: int) -> None:
        for start, buffer in self.pinned.items():
            if start <= address and address + size <= start + len(buffer):
                return
        self.fault("a copy from or to host memory that is not pinned, or was freed")

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        def work() -> None:
            self._pin(source, size)
            self.write(target, ctypes.string_at(source, size))

        self.queue(stream, work)
        return 0

    def _cuMemcpyDtoHAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        def work() -> None:
            self._pin(target, size)
            ctypes.memmove(target, self.read(source, size), size)

        self.queue(stream, work)
        return 0

    def _cuMemcpyDtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        self.queue(stream, lambda: self.write(target, self.read(source, size)))
        return 0

    def _cuStreamCreate(self, stream: Any, flags: int) -> int:
        self._needs_context()
        stream.value = next(self.handles)
        self.streams[stream.value], self.done[stream.value] = [], 0
        return 0

    def _cuStreamDestroy_v2(self, stream: int) -> int:
        if self.streams.pop(stream, None):
            self.fault("a stream was destroyed with work on it")
        return 0

    def _cuStreamSynchronize(self, stream: int) -> int:
        self._needs_context()
        if stream in self.capturing:
            return CAPTURE_UNSUPPORTED
        self._drain(stream)
        return self.broken

    def _drain(self, stream: int, until: int | None = None) -> None:
        work = self.streams.get(stream, [])
        while work and (until is None or self.done[stream] < until):
            first = work.pop(0)
            self.done[stream] += 1
            first()

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> int:
        other, until = self.events[event]
        self.queue(stream, lambda: self._drain(other, until))
        return 0

    def _cuEventCreate(self, event: Any, flags: int) -> int:
        event.value = next(self.handles)
        self.events[event.value] = (0, 0)
        return 0

    def _cuEventRecord(self, event: int, stream: int) -> int:
        self.events[event] = (stream or 0, self.done[stream or 0] + len(self.streams[stream or 0]))
        return 0

    def _cuEventDestroy_v2(self, event: int) -> int:
        del self.events[event]
        return 0

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        self.capturing[stream] = []
        return 0

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        work = self.capturing.pop(stream)
        graph.value = next(self.handles)
        self.graphs[graph.value] = work
        return 0

    def _cuGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> int:
        executable.value = next(self.handles)
        self.graphs[executable.value] = self.graphs[graph]
        return 0

    def _cuGraphLaunch(self, graph: int, stream: int) -> int:
        for work in self.graphs[graph]:
            self.queue(stream, work)
        return 0

    def _cuGraphExecDestroy(self, graph: int) -> int:
        del self.graphs[graph]
        return 0

    _cuGraphDestroy = _cuGraphExecDestroy

    def _find(self, address: int, size: int) -> tuple[bytearray, int]:
        for start, memory in self.memory.items():
            if start <= address and address + size <= start + len(memory):
                return memory, address - start
        for start, length in self.freed.items():
            if start <= address < start + length:
                self.fault(f"use after free of {address:#x}")
        self.fault(f"out of bounds: {size} bytes at {address:#x}")
        raise AssertionError
