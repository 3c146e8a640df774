"""Which ONNX Runtime provider a bundle runs on here, and why: chosen by what truly loads, never by what is listed.

``onnxruntime-gpu`` lists CUDA on machines without a driver, and falls back to the CPU without a word. So the driver is
asked first, and the opened session is asked afterwards.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import BackendError

Device = Literal["auto", "cuda", "cpu"]
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_EXACT_CUDA = (_CUDA, {"use_tf32": "0"})  # else float32 layers round their operands to 11 bits, unsaid


@dataclass(frozen=True)
class Backend:
    """What runs the bundle: its name, why it was chosen, and what was passed over for which reason."""

    name: str
    why: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        passed = f"; passed over: {'; '.join(self.passed_over)}" if self.passed_over else ""
        return f"{self.name} ({self.why}{passed})"


class OrtSession:
    """One ONNX Runtime session behind the contract that every backend keeps: ``run`` a dict, ``close``."""

    def __init__(self, session: Any, backend: Backend, held: Sequence[Any] = ()) -> None:
        self.backend = backend
        self._session = session
        self._held = held  # memory that the session reads and does not own
        self._options: tuple[Any, ...] = ()

    def run(self, inputs: dict[str, npt.NDArray[np.generic]], outputs: list[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph once; the arrays are already checked.

        Raises:
            BackendError: the provider failed; the message is its own.
        """
        try:
            result: list[npt.NDArray[np.generic]] = self._session.run(outputs, inputs, *self._options)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise BackendError(f"{self.backend.name} failed: {_first_line(error)}") from error
        return result

    def allow_stop(self) -> None:
        """Let ``stop`` end a run that is begun after this call."""
        self._options = (_onnxruntime().RunOptions(),)

    def stop(self) -> None:
        """From any thread: let the run under way, and every later one, fail at its next node."""
        for options in self._options:
            options.terminate = True

    def close(self) -> None:
        """Free the session and its memory."""
        self._session = None
        self._held = ()


def open_session(
    graph: bytes,
    device: Device = "auto",
    *,
    strict: bool = False,
    threads: int = 0,
    cpu_graph: bytes | None = None,
    weights: Mapping[str, npt.NDArray[np.generic]] = MappingProxyType({}),
    lean: bool = False,
) -> OrtSession:
    """Open a graph on CUDA where it truly loads, else on the CPU.

    Args:
        graph: a serialised ONNX model.
        device: ``auto`` takes the best that works; ``cuda`` and ``cpu`` take that one or fail.
        strict: with ``auto``, refuse to fall back to the CPU where a GPU is present.
        threads: CPU threads for one run; 0 lets ONNX Runtime choose.
        cpu_graph: the model that stands for it on the CPU, where that lacks kernels for the graph's types.
        weights: with ``cpu``, the initializers that the graph refers to as external data, by name; their memory is
            shared, not copied, and must not change while the session is open.
        lean: with ``cpu``, keep no second copy of the weights in the order that products like best; float32 sums then
            differ in their last bits.

    Raises:
        BackendError: onnxruntime is absent, the graph does not load, or the device asked for does not work.
    """
    if device not in {"auto", "cuda", "cpu"}:
        raise BackendError(f"device: expected auto, cuda or cpu, got {device!r}.")
    ort = _onnxruntime()
    cpu_graph = graph if cpu_graph is None else cpu_graph
    if device == "cpu":
        return _open_cpu(ort, cpu_graph, Backend("onnxruntime-cpu", "asked for"), threads, weights, lean)
    missing = _cuda_missing(ort)
    session, reason = (None, missing) if missing else _try_cuda(ort, graph, threads)
    if session is not None:
        why = "asked for" if device == "cuda" else "a GPU is present and the CUDA provider loaded"
        return OrtSession(session, Backend("onnxruntime-cuda", why))
    if device == "cuda" or (strict and cuda_devices()[0]):
        raise BackendError(f"device cuda: {reason}. Mend that, or open the bundle with device='cpu'.")
    backend = Backend("onnxruntime-cpu", "nothing faster works here", (f"cuda: {reason}",))
    return _open_cpu(ort, cpu_graph, backend, threads)


def cuda_devices() -> tuple[int, str]:
    """Ask the NVIDIA driver, and nothing else, how many GPUs there are.

    Returns:
        The number, and where it is 0 the reason.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "no NVIDIA driver (libcuda.so.1 is not found)"
    status = driver.cuInit(0)
    if status:
        return 0, f"the NVIDIA driver refused to start (cuInit gave {status})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return 0, "the NVIDIA driver sees no GPU"
    return count.value, ""


def _cuda_missing(ort: ModuleType) -> str:
    """Return why CUDA cannot run here, or nothing."""
    if _CUDA not in ort.get_available_providers():
        return "this onnxruntime has no CUDA provider (pip install onnxruntime-gpu)"
    return cuda_devices()[1]


def _try_cuda(ort: ModuleType, graph: bytes, threads: int) -> tuple[Any | None, str]:
    """Return a session that truly runs on CUDA, or None and the reason."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()
    try:
        session = ort.InferenceSession(graph, _options(ort, threads), providers=[_EXACT_CUDA, _CPU])
    except Exception as error:  # its own unrelated classes; the CPU then tells a broken graph from a broken host
        return None, _first_line(error)
    if session.get_providers()[0] != _CUDA:
        return None, "the CUDA provider did not load (its libraries are missing or of another version)"
    return session, ""


def _open_cpu(
    ort: ModuleType,
    graph: bytes,
    backend: Backend,
    threads: int,
    weights: Mapping[str, npt.NDArray[np.generic]] = MappingProxyType({}),
    lean: bool = False,
) -> OrtSession:
    options = _options(ort, threads)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    if values:
        options.add_external_initializers(list(weights), values)
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=[_CPU])
    except Exception as error:
        raise BackendError(f"onnxruntime refuses the graph: {_first_line(error)}") from error
    return OrtSession(session, backend, values)


def _options(ort: ModuleType, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a spinning thread starves its neighbours
    return options


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}). pip install engineworks brings it.") from error
    module: ModuleType = onnxruntime
    return module


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
