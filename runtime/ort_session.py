"""ONNX Runtime on the CPU or on CUDA: opened on what truly loads, never on what is listed.

``onnxruntime-gpu`` lists CUDA on machines without a driver, and falls back to the CPU without a word. So the driver is
asked first, and the opened session is asked afterwards. Host arrays go through plain ``run``, which was measured to be
the cheapest way (a binding costs 30 µs more on the CPU); arrays on a GPU are bound where they lie.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import numpy as np

from engineworks.runtime import cuda, dlpack
from engineworks.runtime.errors import BackendError, InputError
from engineworks.runtime.protocol import Array, Backend, OnDevice

Optimise = Literal["all", "float", "none"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOST = re.compile(r"(?:CUDA|CUDNN|CUBLAS)\w* (?:failure|error) (?!2\b)\d+", re.IGNORECASE)  # 2 is want of memory


class OrtSession:
    """One ONNX Runtime session behind the contract that every backend keeps."""

    notes: tuple[str, ...] = ()

    def __init__(self, session: Any, backend: Backend, gpu: int | None = None, held: Sequence[Any] = ()) -> None:
        self.backend = backend
        self.device = "cpu" if gpu is None else f"cuda:{gpu}"
        self._session, self._index = session, gpu
        self._held = held  # memory that the session reads and does not own
        self._options: tuple[Any, ...] = ()
        self._dead = ""
        self._arrivals: tuple[cuda.Device, int] | None = None  # the stream on which arrays of the GPU arrive
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Array]:
        """Run the graph once; the arrays are already checked.

        Raises:
            BackendError: the provider failed; the message is its own. After an error of CUDA every later call is
                refused: the GPU's state is lost, and an answer could be wrong.
        """
        session = self._session
        if session is None or self._dead:
            session = self._opened()
        try:
            for array in inputs.values():
                if not isinstance(array, np.ndarray):
                    break
            else:
                result: list[Array] = session.run(outputs, inputs, *self._options)
                return result
            return [value.numpy() for value in self._bound(session, inputs, outputs, "cpu")]
        except (BackendError, InputError):
            raise
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise self._failed(error) from error

    def run_on_device(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[OnDevice]:
        """Run once; on CUDA the outputs stay on the GPU, on the CPU they are numpy arrays.

        Raises:
            BackendError: as ``run``.
        """
        if self._index is None:
            return list(self.run(inputs, outputs))
        try:
            return self._bound(self._opened(), inputs, outputs, "cuda")
        except (BackendError, InputError):
            raise
        except Exception as error:  # as above
            raise self._failed(error) from error

    def allow_stop(self) -> None:
        """Let ``stop`` end a run of host arrays that is begun after this call."""
        self._options = (onnxruntime().RunOptions(),)

    def stop(self) -> None:
        """From any thread: let the run under way, and every later one, fail at its next node."""
        for options in self._options:
            options.terminate = True

    def close(self) -> None:
        """Let go of the session; its memory is freed with the last call in flight."""
        with self._lock:
            arrivals, self._arrivals, self._session, self._held = self._arrivals, None, None, ()
        if arrivals is not None and not self._dead:
            gpu, stream = arrivals
            with gpu.current():
                gpu.destroy_stream(stream)

    def _opened(self) -> Any:
        if self._dead:
            raise BackendError(f"{self.backend.name} is lost since a CUDA error: {self._dead}. Start a new process.")
        session = self._session
        if session is None:
            raise BackendError(f"{self.backend.name}: this session is closed. Open the bundle again.")
        return session

    def _failed(self, error: Exception) -> BackendError:
        words = first_line(error)
        if self.backend.name.endswith("cuda") and _LOST.search(str(error)):
            self._dead = words
        return BackendError(f"{self.backend.name} failed: {words}")

    def _bound(self, session: Any, inputs: Mapping[str, Any], outputs: Sequence[str], where: str) -> list[Any]:
        """Run with every array bound where it lies, and the outputs where they are wanted."""
        binding, kept = session.io_binding(), []
        for name, value in inputs.items():
            if dlpack.is_on_device(value):
                kept.append(self._bind_on_device(binding, name, value))
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(dlpack.on_host(name, value)))
        index = (self._index or 0) if where == "cuda" else 0
        for name in outputs:
            binding.bind_output(name, where, index)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        values: list[Any] = binding.get_outputs()
        return values

    def _bind_on_device(self, binding: Any, name: str, value: Any) -> dlpack.View:
        if self._index is None:
            raise InputError(
                f"input {name!r}: it lies on a GPU, and this session runs on the CPU. Copy it there first."
            )
        gpu, stream = self._arrival_stream(self._index)
        with gpu.current():
            seen = dlpack.view(name, value, stream)
            if gpu.owner_of(seen.address) != gpu.index:
                raise InputError(f"input {name!r}: it lies on another GPU than cuda:{gpu.index}. Copy it there first.")
            if seen.wait is not None:
                gpu.wait_for(stream, seen.wait)
            gpu.synchronise(stream)  # onnxruntime runs on a stream of its own, which nobody can make wait
        binding.bind_input(name, "cuda", gpu.index, seen.dtype, seen.shape, seen.address)
        return seen

    def _arrival_stream(self, index: int) -> tuple[cuda.Device, int]:
        with self._lock:
            if self._arrivals is None:
                gpu = cuda.Device(cuda.open_driver(), index)
                with gpu.current():
                    self._arrivals = gpu, gpu.make_stream()
            return self._arrivals


def open_cpu(
    graph: bytes | str,
    backend: Backend,
    threads: int = 0,
    optimise: Optimise = "all",
    weights: Mapping[str, Array] = MappingProxyType({}),
    lean: bool = False,
) -> OrtSession:
    """Open a graph on the CPU; the arguments are those of ``backend.open_session``.

    Raises:
        BackendError: onnxruntime is absent, or refuses the graph.
    """
    ort = onnxruntime()
    options = _options(ort, threads, optimise)
    options.log_severity_level = 4  # what fails is raised; its log would say that again, in colour
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    if values:
        options.add_external_initializers(list(weights), values)
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=[CPU])
    except Exception as error:
        raise BackendError(f"onnxruntime refuses the graph: {first_line(error)}") from error
    return OrtSession(session, backend, held=values)


def cuda_missing() -> str:
    """Return why this onnxruntime has no CUDA at all, or nothing."""
    if CUDA not in onnxruntime().get_available_providers():
        return "this onnxruntime has no CUDA provider (pip install onnxruntime-gpu)"
    return ""


def open_cuda(
    graph: bytes | str, backend: Backend, index: int, threads: int = 0, optimise: Optimise = "all"
) -> OrtSession | str:
    """Open a graph on a GPU; return the reason where it does not truly end up there."""
    ort = onnxruntime()
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()
    exact = {"use_tf32": "0", "device_id": str(index)}  # else float32 layers round their operands to 11 bits, unsaid
    try:
        session = ort.InferenceSession(graph, _options(ort, threads, optimise), providers=[(CUDA, exact), CPU])
    except Exception as error:  # its own unrelated classes; the CPU then tells a broken graph from a broken host
        return first_line(error)
    if session.get_providers()[0] != CUDA:
        return "the CUDA provider did not load (its libraries are missing or of another version)"
    return OrtSession(session, backend, index)


def onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        BackendError: it is not there, with the line that mends it.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}). pip install engineworks brings it.") from error
    found: ModuleType = module
    return found


def first_line(error: Exception) -> str:
    """Return the first line of a message, or the error's type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _options(ort: ModuleType, threads: int, optimise: Optimise) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a spinning thread starves its neighbours
    if optimise == "none":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimise == "float":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options
