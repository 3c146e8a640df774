"""From an engine's bytes to a deserialised engine: one code path for TensorRT and TensorRT-RTX.

Nothing of either is imported before the driver has shown a GPU: without one, some of their objects crash the process
instead of failing. What fits is found from the bundle's record; features are found by asking the objects, never by
comparing versions; every None and False becomes a BackendError with the cause from the log.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from engineworks.runtime.cuda import Gpu
from engineworks.runtime.errors import BackendError
from engineworks.runtime.manifest import EngineRecord, Manifest, Tensor
from engineworks.runtime.trt_journal import Journal, shared_logger

Flavour = Literal["tensorrt", "rtx"]
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_LEAN = "tensorrt_lean"
_NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Profile:
    """One optimization profile of an engine: the batch sizes that it takes, smallest and largest."""

    index: int
    smallest: int
    largest: int


@dataclass
class OpenEngine:
    """A deserialised engine with what must live as long as it does. ``dtypes`` are numpy's, by tensor."""

    trt: Any
    runtime: Any
    engine: Any
    journal: Journal
    profiles: tuple[Profile, ...]
    notes: tuple[str, ...] = ()


def is_installed(name: str) -> bool:
    """Tell whether a module could be imported, without importing it."""
    return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None


def absent(flavour: Flavour) -> str:
    """Return why this flavour's package cannot be used here, without importing it; empty where it is installed."""
    name = MODULES[flavour]
    if is_installed(name):
        return ""
    line = f'{name} is not installed. pip install "engineworks[{flavour}]"'
    if flavour == "tensorrt" and is_installed(_LEAN):
        return f"{line} ({_LEAN} is, but runs version-compatible engines only, which export-model does not make)"
    return line


def load_module(flavour: Flavour) -> Any:
    """Import ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        BackendError: it is not installed (with the pip line), or does not import (with its own reason).
    """
    if reason := absent(flavour):
        raise BackendError(reason)
    name = MODULES[flavour]
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"{name} is installed but does not import: {type(error).__name__}: {reason}") from error


def fitting_record(manifest: Manifest, flavour: Flavour, gpu: Gpu) -> EngineRecord:
    """Find the bundle's engine of this flavour for this GPU.

    Raises:
        BackendError: there is none; the message says what there is instead, and the mend.
    """
    records = [record for record in manifest.engines if record.flavour == flavour]
    if not records:
        raise BackendError(f"bundle {manifest.name} has no {flavour} engine. Re-run export-model --engine {flavour}")
    for record in records:
        if _plain(gpu.target) in map(_plain, record.targets):
            return record
    built = "; ".join(f"{MODULES[flavour]} {record.version} for {_shown(record.targets)}" for record in records)
    mend = "Re-run export-model here"
    if flavour == "rtx" and gpu.target in {"sm90", "sm100", "sm103", "sm110"}:
        mend = "TensorRT-RTX has no Hopper and no datacenter Blackwell: re-run export-model here with --engine tensorrt"
    raise BackendError(
        f"bundle {manifest.name}: engine was built by {built}; this GPU is {_shown([gpu.target])}. "
        f'{mend}, or open it with backend="onnxruntime".'
    )


def check_version(trt: Any, record: EngineRecord, name: str) -> None:
    """Hold the installed version against the one that built the engine: plans are for that very one.

    Raises:
        BackendError: they differ.
    """
    installed = str(trt.__version__)
    if installed != record.version:
        package = trt.__name__
        raise BackendError(
            f"bundle {name}: engine was built by {package} {record.version}; installed is {installed}. "
            f'Install that version, re-run export-model here, or open it with backend="onnxruntime".'
        )


def open_engine(trt: Any, plan: bytes, manifest: Manifest, journal: Journal) -> OpenEngine:
    """Deserialise an engine; the GPU's context is current, its bytes' digest was checked.

    Raises:
        BackendError: TensorRT refused it, with its own words; or the engine is not what the manifest says.
    """
    runtime, engine, notes = deserialise(trt, plan, f"bundle {manifest.name}", journal)
    _check_tensors(trt, engine, manifest)
    return OpenEngine(trt, runtime, engine, journal, _profiles(engine, manifest), notes)


def deserialise(trt: Any, plan: bytes, label: str, journal: Journal) -> tuple[Any, Any, tuple[str, ...]]:
    """Deserialise a plan; return the runtime, the engine, and what is less than best. ``label`` begins each error.

    Raises:
        BackendError: TensorRT refused it, with its own words.
    """
    logger = shared_logger(trt)
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:  # what the bindings raise where the library gave no runtime
        raise BackendError(f"{trt.__name__} {trt.__version__} does not start: {journal.cause()}") from error
    notes = _check_validity(trt, runtime, plan, label)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{label}: {trt.__name__} refused the engine: {journal.cause()}")
    return runtime, engine, notes


def _check_validity(trt: Any, runtime: Any, plan: bytes, label: str) -> tuple[str, ...]:
    """Ask whether this GPU and driver take the engine, where the API can tell; return what is less than best.

    INVALID says that *this host* cannot run it, for the reasons in the bits: only one of them means a bad file. Without
    any bit it is no verdict, and deserialising decides.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return ()
    validity, bits = runtime.get_engine_validity(plan)
    meanings = {
        trt.EngineInvalidityDiagnostics.VERSION_MISMATCH: "it is of another TensorRT-RTX version",
        trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC: "it was not compiled for this GPU",
        trt.EngineInvalidityDiagnostics.OLD_CUDA_DRIVER: "the NVIDIA driver is too old. Update it",
        trt.EngineInvalidityDiagnostics.OLD_CUDA_RUNTIME: "the CUDA runtime is too old",
        trt.EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY: "the GPU has too little memory",
        trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE: "the file is no whole engine. Re-run export-model",
        trt.EngineInvalidityDiagnostics.CUDA_ERROR: "CUDA failed when it was asked",
    }
    reasons = "; ".join(words for bit, words in meanings.items() if int(bits) & int(bit))
    if validity == trt.EngineValidity.INVALID and reasons:
        raise BackendError(f"{label}: {trt.__name__} cannot run the engine here: {reasons}.")
    if validity == trt.EngineValidity.SUBOPTIMAL:
        return (f"{trt.__name__} calls the engine less than optimal here{': ' * bool(reasons)}{reasons}",)
    return ()


def _check_tensors(trt: Any, engine: Any, manifest: Manifest) -> None:
    """Hold the engine's inputs and outputs against the manifest's, in name, direction, type and shape."""
    count = engine.num_io_tensors
    found = {name: _describe(trt, engine, name) for name in (engine.get_tensor_name(i) for i in range(count))}
    wanted = _wanted("input", manifest.inputs) | _wanted("output", manifest.outputs)
    if found != wanted:
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        told = "; ".join(f"{name}: expected {wanted.get(name)}, got {found.get(name)}" for name in differ)
        raise BackendError(f"bundle {manifest.name}: the engine is not of this bundle: {told}. Re-run export-model.")


def _describe(trt: Any, engine: Any, name: str) -> tuple[str, str, tuple[int, ...]]:
    way = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
    dtype = engine.get_tensor_dtype(name).name
    place = "" if engine.get_tensor_location(name) == trt.TensorLocation.DEVICE else "host "
    layout = "" if engine.get_tensor_format(name) == trt.TensorFormat.LINEAR else "reordered "
    shape = tuple(engine.get_tensor_shape(name))
    return way, f"{place}{layout}{_NUMPY.get(dtype, dtype)}", (-1, *shape[1:]) if shape else shape


def _wanted(way: str, tensors: Iterable[Tensor]) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    return {
        tensor.name: (
            way,
            tensor.dtype,
            tuple(-1 if axis == 0 or isinstance(size, str) else size for axis, size in enumerate(tensor.shape)),
        )
        for tensor in tensors
    }


def _profiles(engine: Any, manifest: Manifest) -> tuple[Profile, ...]:
    """Read which batches each profile takes; an engine of fixed shape has one, for that batch alone."""
    found = []
    for index in range(max(1, engine.num_optimization_profiles)):
        ranges = [batches(engine, tensor.name, index) for tensor in manifest.inputs if tensor.shape]
        found.append(Profile(index, max(low for low, _ in ranges), min(high for _, high in ranges)))
    return tuple(sorted(found, key=lambda profile: (profile.largest, -profile.smallest)))


def batches(engine: Any, name: str, index: int) -> tuple[int, int]:
    """Return the smallest and the largest batch of a profile, of an input that has a batch axis."""
    size, *_ = engine.get_tensor_shape(name)
    if size >= 0:
        return size, size
    (smallest, *_), _, (largest, *_) = engine.get_tensor_profile_shape(name, index)
    return smallest, largest


def clear_frames(raised: BaseException | None) -> None:
    """Let go of what an error and its causes hold in their frames: TensorRT's objects outlive their turn there."""
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__cause__ or raised.__context__


def _plain(target: str | None) -> str:
    return (target or "").replace("_", "")


def _shown(targets: Iterable[str | None]) -> str:
    return ", ".join(_plain(target).replace("sm", "sm_") for target in targets)
