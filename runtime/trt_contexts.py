"""Execution contexts: one caller at a time has one, with a stream and buffers of its own; further callers wait.

A context's buffers are as large as its profile's largest batch, and made once. Host arrays pass through pinned memory,
which the GPU reads by itself; arrays on the GPU are read where they lie. Nothing leaves a context while its stream is
still at work: a failed call waits for it, too, for the next caller's data would be mixed with its own.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

from engineworks.runtime import dlpack
from engineworks.runtime.cuda import Device
from engineworks.runtime.errors import BackendError, CudaError, InputError
from engineworks.runtime.manifest import Tensor
from engineworks.runtime.protocol import Array, OnDevice
from engineworks.runtime.trt_journal import Journal, listening
from engineworks.runtime.trt_runtime import Profile

_ALIGNED = 256  # bytes: what TensorRT's own allocations keep; an input that lies otherwise is copied once
Graphs = Literal["none", "ours", "theirs"]
"""Who captures the network into a CUDA graph, if anybody: this module, or TensorRT-RTX by itself."""

_CAPTURE_ERRORS = range(900, 910)  # cuda.h: the capture failed, and nothing else is lost


@dataclass(frozen=True)
class Shaped:
    """A tensor of the engine with a batch in front: its row's shape, its dtype, and one row's size in bytes."""

    name: str
    row: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.row) * self.dtype.itemsize


def shaped(tensor: Tensor) -> Shaped:
    """Take a tensor of the manifest; only its first axis may be free.

    Raises:
        BackendError: another axis is.
    """
    row = tuple(size for size in tensor.shape[1:] if isinstance(size, int))
    if not tensor.shape or len(row) != len(tensor.shape) - 1:
        raise BackendError(f"{tensor.name!r}: expected a batch and fixed sizes behind it, got {tensor.shape}.")
    return Shaped(tensor.name, row, np.dtype(tensor.dtype))


@dataclass
class _Buffer:
    """Device memory for one tensor at the largest batch, and pinned host memory once a caller needs it."""

    tensor: Shaped
    size: int
    address: int
    pinned: int = 0
    host: Array = field(default_factory=lambda: np.empty(0))


class Slot:
    """One execution context with its stream and buffers: for one thread at a time, with the GPU's context current."""

    def __init__(self, context: Any, gpu: Device, profile: Profile, graphs: Graphs) -> None:
        self.context, self.gpu, self.profile = context, gpu, profile
        self.journal = Journal()
        self.notes: list[str] = []
        self.stream = gpu.make_stream()
        self._capture = graphs == "ours"
        self._own_addresses = graphs != "none"  # a captured graph reads and writes where it did when it was captured
        self._graph: int | None = None
        self._warm = False  # the batch size is that of the call before
        self._batch: int | None = None
        self._bound: dict[str, int] = {}
        self._inputs: dict[str, _Buffer] = {}
        self._outputs: dict[str, _Buffer] = {}

    def prepare(self, inputs: Sequence[Shaped], outputs: Sequence[Shaped], rows: int) -> None:
        """Select the profile and make the buffers for batches up to ``rows``.

        Raises:
            BackendError: TensorRT or the GPU's memory refused.
        """
        with listening(self.journal):
            selected = self.context.set_optimization_profile_async(self.profile.index, self.stream)
        self._require(selected, f"optimization profile {self.profile.index}")
        self.gpu.synchronise(self.stream)
        for tensors, buffers in ((inputs, self._inputs), (outputs, self._outputs)):
            for tensor in tensors:
                size = max(1, rows * tensor.row_bytes)
                buffers[tensor.name] = _Buffer(tensor, size, self.gpu.allocate(size))

    def run(self, inputs: Mapping[str, Any], wanted: Sequence[str], batch: int) -> list[Array]:
        """Run a batch and return the wanted outputs on the host, in arrays of the caller's own."""
        with self._settled(), listening(self.journal):
            kept = self._enqueue(inputs, {}, batch)
            for name in wanted:
                buffer = self._with_pinned(self._outputs[name])
                self.gpu.to_host(buffer.pinned, buffer.address, batch * buffer.tensor.row_bytes, self.stream)
            self.gpu.synchronise(self.stream)
            del kept
            return [self._host_rows(self._outputs[name], batch).copy() for name in wanted]

    def run_on_device(self, inputs: Mapping[str, Any], wanted: Sequence[str], batch: int) -> list[OnDevice]:
        """Run a batch and return the wanted outputs in device memory of the caller's own; they are complete."""
        arrays = {name: self._new_array(self._outputs[name].tensor, batch) for name in wanted}
        with self._settled(), listening(self.journal):
            direct = {} if self._own_addresses else {name: array.address for name, array in arrays.items()}
            kept = self._enqueue(inputs, direct, batch)
            for name, array in arrays.items():
                if name not in direct:
                    buffer = self._outputs[name]
                    self.gpu.copy(array.address, buffer.address, batch * buffer.tensor.row_bytes, self.stream)
            self.gpu.synchronise(self.stream)
            del kept
            return [arrays[name] for name in wanted]

    def close(self) -> None:
        """Free the context, its buffers and its stream; the stream is idle."""
        self._drop_graph()
        self.context = None
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            self.gpu.free(buffer.address)
            if buffer.pinned:
                buffer.host = np.empty(0)
                self.gpu.free_host(buffer.pinned)
        self._inputs, self._outputs = {}, {}
        self.gpu.destroy_stream(self.stream)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Leave only once the stream is idle, however the block ends."""
        try:
            yield
        except BaseException as error:
            lost = isinstance(error, Lost) or (isinstance(error, CudaError) and not error.is_passing)
            with suppress(CudaError) if lost else nullcontext():  # a lost GPU refuses again; what was first is raised
                self.gpu.synchronise(self.stream)
            raise

    def _enqueue(self, inputs: Mapping[str, Any], direct: Mapping[str, int], batch: int) -> list[Any]:
        """Queue the copies and the network; what is returned must live until the stream is idle."""
        self.journal.errors.clear()
        self._set_batch(batch)
        kept = [self._place(self._inputs[name], value, batch) for name, value in inputs.items()]
        for name, buffer in self._outputs.items():
            self._bind(name, direct.get(name, buffer.address))
        self._execute()
        return kept

    def _set_batch(self, batch: int) -> None:
        if batch == self._batch:
            return
        self._drop_graph()  # a captured graph holds for the shapes that it was captured with
        self._batch, self._warm = None, False
        for name, buffer in self._inputs.items():
            shape = (batch, *buffer.tensor.row)
            self._require(self.context.set_input_shape(name, shape), f"shape {shape} of input {name!r}")
        try:
            missing = self.context.infer_shapes()
        except RuntimeError as error:  # documented for whatever else goes wrong there
            raise BackendError(f"TensorRT cannot infer the shapes of batch {batch}: {error}") from error
        self._require(not missing, f"shapes; it still wants {', '.join(missing)}")
        for name, buffer in self._outputs.items():
            shape, expected = tuple(self.context.get_tensor_shape(name)), (batch, *buffer.tensor.row)
            self._require(shape == expected, f"shape of output {name!r}: expected {expected}, it makes {shape}")
        self._batch = batch

    def _place(self, buffer: _Buffer, value: Any, batch: int) -> Any:
        """Bring one input to the GPU, or bind it where it lies there."""
        if dlpack.is_on_device(value):
            return self._place_from_device(buffer, value, batch)
        array = dlpack.on_host(buffer.tensor.name, value)
        self._check(buffer.tensor, array.shape, array.dtype, batch)
        np.copyto(self._host_rows(self._with_pinned(buffer), batch), array, casting="no")
        self.gpu.to_device(buffer.address, buffer.pinned, batch * buffer.tensor.row_bytes, self.stream)
        self._bind(buffer.tensor.name, buffer.address)
        return None

    def _place_from_device(self, buffer: _Buffer, value: Any, batch: int) -> Any:
        seen = dlpack.view(buffer.tensor.name, value, self.stream)
        self._check(buffer.tensor, seen.shape, seen.dtype, batch)
        if self.gpu.owner_of(seen.address) != self.gpu.index:
            raise InputError(
                f"input {buffer.tensor.name!r}: it lies on another GPU than cuda:{self.gpu.index}. Copy it there first."
            )
        if seen.wait is not None:
            self.gpu.wait_for(self.stream, seen.wait)
        if self._own_addresses or seen.address % _ALIGNED:
            self.gpu.copy(buffer.address, seen.address, seen.nbytes, self.stream)
            self._bind(buffer.tensor.name, buffer.address)
        else:
            self._bind(buffer.tensor.name, seen.address)
        return seen

    def _check(self, tensor: Shaped, shape: tuple[int, ...], dtype: np.dtype[Any], batch: int) -> None:
        if shape != (batch, *tensor.row) or dtype != tensor.dtype:
            raise InputError(
                f"input {tensor.name!r}: expected {tensor.dtype} {(batch, *tensor.row)}, got {dtype} {shape}."
            )

    def _bind(self, name: str, address: int) -> None:
        if self._bound.get(name) != address:
            self._bound.pop(name, None)
            self._require(self.context.set_tensor_address(name, address), f"address of {name!r}")
            self._bound[name] = address

    def _execute(self) -> None:
        if self._graph is not None:
            self.gpu.launch(self._graph, self.stream)
            return
        if not self.context.execute_async_v3(self.stream):
            raise Lost(f"execution failed: {self.journal.cause()}")
        if self._capture and self._warm:
            self._try_capture()
        self._warm = True

    def _try_capture(self) -> None:
        """Capture the same work for the next call: two of this batch size in a row were made, more may follow."""
        context = self.context
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self.stream):
            return  # not yet: kernels for this batch are still being compiled
        graph: list[int] = []
        try:
            with self.gpu.captured(self.stream, graph):
                if not context.execute_async_v3(self.stream):
                    raise _NotCapturable(self.journal.cause())
        except (_NotCapturable, CudaError) as error:
            if isinstance(error, CudaError) and error.status not in _CAPTURE_ERRORS:
                raise
            self._capture = False
            self.notes.append(f"CUDA graphs are off: {error}")
            return
        self._graph = graph[0]

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self.gpu.destroy_graph(graph)

    def _new_array(self, tensor: Shaped, batch: int) -> dlpack.DeviceArray:
        address = self.gpu.allocate(max(1, batch * tensor.row_bytes))
        return dlpack.DeviceArray(self.gpu, address, (batch, *tensor.row), tensor.dtype)

    def _with_pinned(self, buffer: _Buffer) -> _Buffer:
        if not buffer.pinned:
            buffer.pinned = self.gpu.allocate_host(buffer.size)
            memory = memoryview((ctypes.c_char * buffer.size).from_address(buffer.pinned)).cast("B")
            count = buffer.size // buffer.tensor.dtype.itemsize
            buffer.host = np.frombuffer(memory, buffer.tensor.dtype, count)
        return buffer

    def _host_rows(self, buffer: _Buffer, batch: int) -> Array:
        shape = (batch, *buffer.tensor.row)
        return buffer.host[: prod(shape)].reshape(shape)

    def _require(self, answer: object, what: str) -> None:
        """Turn a False of the API's into an error with its cause."""
        if not answer:
            raise BackendError(f"TensorRT refused the {what}: {self.journal.cause()}")


class Lost(BackendError):
    """The GPU's state is no longer known: nothing more may be asked of it."""


class _NotCapturable(Exception):
    """The network cannot be captured into a CUDA graph."""


class Pool:
    """The contexts of one profile, each lent to one caller at a time."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)
        self._free = list(self.slots)
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, refused: Callable[[], None]) -> Iterator[Slot]:
        """Wait for a free context; ``refused`` is called before it is given, and raises where none may be used."""
        with self._changed:
            refused()
            while not self._free:
                self._changed.wait()
                refused()
            slot = self._free.pop()
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify()

    def wake(self) -> None:
        """Let those who wait ask again whether they may go on."""
        with self._changed:
            self._changed.notify_all()
