"""What runs a bundle here, and why: chosen by what truly opens, never by what is listed.

An engine made for this GPU comes first (TensorRT, then TensorRT-RTX), then ONNX Runtime on CUDA, then on the CPU. The
NVIDIA driver is asked before any of them is touched. Whatever is passed over is named, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from engineworks.runtime import ort_session
from engineworks.runtime.bundle import GRAPH, Bundle
from engineworks.runtime.cuda import Gpu, probe_gpu
from engineworks.runtime.errors import BackendError
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.ort_session import Optimise, OrtSession
from engineworks.runtime.protocol import (
    NO_HURRY,
    Backend,
    BackendName,
    BackendSession,
    Device,
    OnDevice,
    Place,
    Speed,
    Tuning,
    check_tuning,
    parse_device,
)

__all__ = [
    "ENGINES",
    "Backend",
    "BackendName",
    "BackendSession",
    "Device",
    "OnDevice",
    "OrtSession",
    "Speed",
    "Tuning",
    "check_choice",
    "open_bundle_session",
    "open_session",
    "parse_device",
]

ENGINES = ("tensorrt", "rtx")
_NAMES = ("auto", "onnxruntime", *ENGINES)


def open_session(
    graph: bytes | str,
    device: Device = "auto",
    *,
    strict: bool = False,
    threads: int = 0,
    cpu_graph: bytes | str | None = None,
    optimise: Optimise = "all",
    weights: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
    lean: bool = False,
) -> OrtSession:
    """Open a graph with ONNX Runtime: on CUDA where it truly loads, else on the CPU.

    Args:
        graph: a serialised ONNX model, or the path of one.
        device: ``auto`` takes the best that works; ``cuda``, ``cuda:N`` and ``cpu`` take that one or fail.
        strict: with ``auto``, refuse to fall back to the CPU where a GPU is present.
        threads: CPU threads for one run; 0 lets ONNX Runtime choose.
        cpu_graph: the model that stands for it on the CPU, where that lacks kernels for the graph's types.
        optimise: ``float`` rounds ``graph`` as its Q and DQ say and computes in float between, for integer kernels
            saturate on CPUs without VNNI (a ``cpu_graph`` is fused all the same); with ``cpu``, ``none`` runs every
            node as it is written.
        weights: with ``cpu``, the initializers that the graph refers to as external data, by name; their memory is
            shared, not copied, and must not change while the session is open.
        lean: with ``cpu``, keep no second copy of the weights in the order that products like best; float32 sums then
            differ in their last bits.

    Raises:
        BackendError: onnxruntime is absent, the graph does not load, or the device asked for does not work.
    """
    place = parse_device(device)
    graphs = _Graphs(graph, graph if cpu_graph is None else cpu_graph, threads, optimise)
    if place.kind == "cpu":
        backend = Backend("onnxruntime-cpu", "asked for")
        return ort_session.open_cpu(graphs.on_cpu, backend, threads, graphs.level_on_cpu, weights, lean)
    missing, gpu = ort_session.cuda_missing(), probe_gpu(place.index)
    return _open_graph(graphs, place, gpu, strict=strict, missing=missing)


@dataclass(frozen=True)
class _Graphs:
    """What ONNX Runtime is given: the graph, the one for the CPU, and how many threads it may use there."""

    graph: bytes | str
    on_cpu: bytes | str
    threads: int
    optimise: Optimise = "all"

    @property
    def level_on_cpu(self) -> Optimise:
        """Let a Q/DQ graph that was written for the CPU be fused."""
        return "all" if self.optimise == "float" and self.on_cpu != self.graph else self.optimise


def _open_graph(
    graphs: _Graphs, place: Place, gpu: Gpu, *, strict: bool, missing: str, passed_over: tuple[str, ...] = ()
) -> OrtSession:
    asked = "asked for" if place.kind == "cuda" and not passed_over else "a GPU is present and the CUDA provider loaded"
    reason = missing or gpu.problem
    if not reason:
        backend = Backend("onnxruntime-cuda", asked, passed_over)
        opened = ort_session.open_cuda(graphs.graph, backend, place.index, graphs.threads, graphs.optimise)
        if isinstance(opened, OrtSession):
            return opened
        reason = opened
    if place.kind == "cuda" or (strict and gpu.target):
        told = "; ".join((*passed_over, reason))
        name = str(place) if place.kind == "cuda" else "cuda"
        raise BackendError(f"device {name}: {told}. Mend that, or open the bundle with device='cpu'.")
    backend = Backend("onnxruntime-cpu", "nothing faster works here", (*passed_over, f"cuda: {reason}"))
    return ort_session.open_cpu(graphs.on_cpu, backend, graphs.threads, graphs.level_on_cpu)


def open_bundle_session(
    bundle: Bundle,
    *,
    device: Device = "auto",
    backend: BackendName = "auto",
    strict: bool = False,
    contexts: int = 2,
    max_batch: int | None = None,
    threads: int = 0,
    speed: Speed = NO_HURRY,
) -> BackendSession:
    """Open a bundle on the best that works here. Every file's digest is checked first, once.

    Args:
        bundle: an opened bundle.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        backend: ``auto``, or one of ``tensorrt``, ``rtx`` and ``onnxruntime`` alone.
        strict: with ``auto``, refuse to pass over an engine that was made for this GPU, and refuse the CPU where a GPU
            is present.
        contexts: with an engine, how many calls run at once; further callers wait.
        max_batch: with an engine, buffers for batches up to this one alone; None for the engine's largest.
        threads: CPU threads for one run of ONNX Runtime; 0 lets it choose.
        speed: with an engine, CUDA graphs and when kernels are compiled; see ``Speed``.

    Raises:
        BundleError: a file is damaged or edited.
        BackendError: what was asked for does not work here; the message says why, and the mend.
    """
    place = check_choice(backend, device)
    tuning = check_tuning(Tuning(contexts, max_batch, speed))
    cpu = str(bundle.manifest.graph.get("cpu", GRAPH))  # stands for the typed graph where the CPU lacks its kernels
    level: Optimise = "float" if bundle.manifest.precision.asked == "int8" else "all"
    if place.kind == "cpu":
        files = read_checked(bundle, {GRAPH, cpu})
        return open_session(files[GRAPH], device, threads=threads, cpu_graph=files[cpu], optimise=level)
    gpu = probe_gpu(place.index)
    candidates = _candidates(bundle, gpu, backend)
    wanted = {record.file for _, record, problem in candidates if record and not problem}
    files = read_checked(bundle, wanted if backend in ENGINES else wanted | {GRAPH, cpu})
    passed_over: tuple[str, ...] = ()
    for flavour, record, problem in candidates:
        if record is None or problem:
            opened: BackendSession | str = problem
        else:
            opened = _try_engine(bundle, files[record.file], record, gpu, tuning, passed_over)
        if not isinstance(opened, str):
            return opened
        passed_over = (*passed_over, f"{flavour}: {opened}")
        if strict and record is not None:
            raise BackendError(f"strict: the bundle has an engine for this GPU, and {'; '.join(passed_over)}")
    if backend in ENGINES:
        raise BackendError("; ".join(passed_over))
    graphs = _Graphs(files[GRAPH], files[cpu], threads, level)
    missing = ort_session.cuda_missing()
    return _open_graph(graphs, place, gpu, strict=strict, missing=missing, passed_over=passed_over)


def _try_engine(
    bundle: Bundle, plan: bytes, record: EngineRecord, gpu: Gpu, tuning: Tuning, passed_over: tuple[str, ...]
) -> BackendSession | str:
    """Open an engine, or return why it does not open."""
    from engineworks.runtime import trt_session

    try:
        return trt_session.open_session(bundle, plan, record, gpu, tuning, passed_over)
    except BackendError as error:
        return str(error)


def _candidates(bundle: Bundle, gpu: Gpu, backend: BackendName) -> list[tuple[str, EngineRecord | None, str]]:
    """For each kind of engine, best first: the bundle's record for this GPU, and why it cannot be used if so.

    Nothing is imported here: an absent package is known by its name alone.
    """
    from engineworks.runtime import trt_runtime

    found = list[tuple[str, EngineRecord | None, str]]()
    for flavour in trt_runtime.MODULES:
        if backend not in {"auto", flavour}:
            continue
        record, problems = None, [gpu.problem, trt_runtime.absent(flavour)]
        if not gpu.problem:
            try:
                record = trt_runtime.fitting_record(bundle.manifest, flavour, gpu)
            except BackendError as error:
                problems.append(str(error))
        found.append((flavour, record, "; ".join(filter(None, problems))))
    return found


def check_choice(backend: str, device: Device) -> Place:
    """Hold a backend and a device against each other; return the place.

    Raises:
        BackendError: a name that there is not, or an engine on the CPU.
    """
    place = parse_device(device)
    if backend not in _NAMES:
        raise BackendError(f"backend: expected one of {', '.join(_NAMES)}, got {backend!r}.")
    if backend in ENGINES and place.kind == "cpu":
        raise BackendError(
            f"backend {backend} runs on a GPU alone, and device='cpu' was asked for. Leave one of them out."
        )
    return place


def read_checked(bundle: Bundle, wanted: set[str]) -> dict[str, bytes]:
    """Read and check every file of the bundle once; return those wanted."""
    files = dict.fromkeys((*sorted(wanted), *bundle.manifest.files))  # what is wanted and not there is told by name
    contents = ((name, bundle.read(name)) for name in files)
    return {name: content for name, content in contents if name in wanted}
