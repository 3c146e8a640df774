"""A bundle as one model of a Triton repository: ``config.pbtxt``, the graph or the engine, and the labels.

What Triton's configuration cannot say is said in ``notes``. Field names: Triton's ``model_config.proto``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from engineworks.runtime.bundle import GRAPH, Bundle
from engineworks.runtime.errors import BackendError, BundleError
from engineworks.runtime.manifest import EngineRecord, Manifest, Tensor

TritonBackend = Literal["auto", "onnxruntime", "tensorrt"]
CONFIG = "config.pbtxt"
_LABELS = "labels.txt"
_TYPES = {"float64": "FP64", "float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "bool": "BOOL"} | {
    f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_QUEUE = 1024  # requests that may wait, as in runtime.load
_WARM_RUNS = 2  # as Session.warmup


class Word(str):
    """A word of the configuration that is no text: it stands without quotes."""

    __slots__ = ()


Value = str | int | list[int] | tuple[tuple[str, "Value"], ...]
Message = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository: its folder's name, the files in it, and what Triton cannot express, in words."""

    name: str
    files: Mapping[str, bytes]
    notes: tuple[str, ...]


def triton_model(
    bundle: Bundle, *, name: str | None = None, backend: TritonBackend = "auto", target: str | None = None
) -> TritonModel:
    """Lay a bundle out as Triton wants it.

    Args:
        bundle: an opened bundle; the digest of what is taken from it is checked.
        name: the model's name in Triton; None for the bundle's own.
        backend: ``tensorrt`` takes the engine, ``onnxruntime`` the graph, ``auto`` the engine where the bundle holds
            exactly one that Triton can run.
        target: the GPU whose engine is meant, such as ``sm_90``, where there are several.

    Raises:
        BundleError: a name that Triton does not take, a type that it does not know, or a damaged file.
        BackendError: no engine, or none for that target, or several and no target.
    """
    m, name = bundle.manifest, bundle.manifest.name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name):
        raise BundleError(f"name: expected letters, digits, '.', '_', '-' for Triton, got {name!r}. Pass --name.")
    engine = _engine(m, backend, target)
    labels, notes = _labels(m), [*_notes(m, engine)]
    if isinstance(labels, str):
        notes.append(labels)
    named = not isinstance(labels, str) and bool(labels)
    files = {
        CONFIG: ("\n".join(_lines(_config(m, name, engine, named=named))) + "\n").encode(),
        "1/model.plan" if engine else "1/model.onnx": bundle.read(engine.file if engine else GRAPH),
    }
    if named:
        files[_LABELS] = "".join(f"{label}\n" for label in labels).encode()
    return TritonModel(name, files, tuple(notes))


def batches(m: Manifest) -> bool:
    """Tell whether the first axis of every input and output is the batch, so that Triton may join requests."""
    return all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in (*m.inputs, *m.outputs))


def _engine(m: Manifest, backend: TritonBackend, target: str | None) -> EngineRecord | None:
    """Choose the engine: Triton runs TensorRT's own plans, and not those of TensorRT-RTX."""
    if backend == "onnxruntime":
        return None
    ours = [engine for engine in m.engines if engine.flavour == "tensorrt"]
    found = [engine for engine in ours if target is None or target in engine.targets]
    if len(found) == 1:
        return found[0]
    if backend == "auto" and target is None and not found:
        return None
    held = ", ".join(f"{engine.flavour} for {'/'.join(engine.targets)}" for engine in m.engines) or "none"
    wanted = f"a tensorrt engine for {target}" if target else "one tensorrt engine"
    raise BackendError(
        f"bundle {m.name}: expected {wanted}, got {len(found)} (engines: {held}). "
        "Pass --target for one of several, or --backend onnxruntime."
    )


def _config(m: Manifest, name: str, engine: EngineRecord | None, *, named: bool) -> Message:
    free = batches(m)
    labelled: Message = (("label_filename", _LABELS),) if named else ()
    inputs: Message = tuple(("input", _tensor(tensor, free)) for tensor in m.inputs)
    outputs: Message = tuple(("output", (*_tensor(tensor, free), *labelled)) for tensor in m.outputs)
    return (
        ("name", name),
        ("platform", "tensorrt_plan" if engine else "onnxruntime_onnx"),
        ("max_batch_size", m.batch.max if free else 0),
        *inputs,
        *outputs,
        ("instance_group", _instances(m, engine, free)),
        *_batching(m, engine, free),
        *_warmups(m, free),
        *(("parameters", (("key", key), ("value", (("string_value", text),)))) for key, text in _facts(m)),
    )


def _tensor(tensor: Tensor, free: bool) -> Message:
    """Write name, type and dims; Triton has no empty dims, and takes [1] for them, reshaped."""
    if tensor.dtype not in _TYPES:
        raise BundleError(f"tensor {tensor.name!r}: Triton knows no {tensor.dtype}; it knows {', '.join(_TYPES)}.")
    fields: Message = (("name", tensor.name), ("data_type", Word(f"TYPE_{_TYPES[tensor.dtype]}")))
    dims = _dims(tensor, free)
    return (*fields, ("dims", dims)) if dims else (*fields, ("dims", [1]), ("reshape", (("shape", []),)))


def _dims(tensor: Tensor, free: bool) -> list[int]:
    return [axis if isinstance(axis, int) else -1 for axis in tensor.shape[1 if free else 0 :]]


def _instances(m: Manifest, engine: EngineRecord | None, free: bool) -> Message:
    """Two contexts of one engine share its weights; of ONNX Runtime each would hold all of them, so there is one."""
    if engine:
        profile: Message = (("profile", "0"),) if free else ()  # every engine of ours has one, for all batch sizes
        return (("count", 2), ("kind", Word("KIND_GPU")), *profile)
    return (("count", 1), ("kind", Word("KIND_AUTO" if _cpu_runs(m) else "KIND_GPU")))


def _cpu_runs(m: Manifest) -> bool:
    return str(m.graph.get("cpu", GRAPH)) == GRAPH


def _batching(m: Manifest, engine: EngineRecord | None, free: bool) -> Message:
    """Join what waits, and wait for nothing; an engine is tuned for its usual batch, so Triton prefers that."""
    if not free or m.batch.max == 1:
        return ()
    preferred: Message = (("preferred_batch_size", [m.batch.opt]),) if engine and m.batch.opt > 1 else ()
    return (("dynamic_batching", (*preferred, ("default_queue_policy", (("max_queue_size", _QUEUE),)))),)


def _warmups(m: Manifest, free: bool) -> Message:
    if _sizeless(m, free):
        return ()
    sizes = sorted({m.batch.min, m.batch.opt, m.batch.max}) if free else [1]
    return tuple(("model_warmup", _warmup(m, free, size)) for size in sizes)


def _warmup(m: Manifest, free: bool, size: int) -> Message:
    inputs: Message = tuple(
        (
            "inputs",
            (
                ("key", tensor.name),
                (
                    "value",
                    (
                        ("data_type", Word(f"TYPE_{_TYPES[tensor.dtype]}")),
                        ("dims", _dims(tensor, free) or [1]),
                        ("zero_data", Word("true")),
                    ),
                ),
            ),
        )
        for tensor in m.inputs
    )
    return (("name", f"batch {size}" if free else "zeros"), ("batch_size", size), *inputs, ("count", _WARM_RUNS))


def _sizeless(m: Manifest, free: bool) -> list[str]:
    """Name the inputs with an axis whose size would be a guess."""
    return [tensor.name for tensor in m.inputs if -1 in _dims(tensor, free)]


def _facts(m: Manifest) -> Iterator[tuple[str, str]]:
    """Give what a client needs beside shapes; it reads them from Triton's model configuration."""
    yield "engineworks_bundle", m.summary
    yield "engineworks_graph_sha256", m.files[GRAPH].sha256 if GRAPH in m.files else "unknown"
    yield "engineworks_scores", m.scores
    if m.preprocessing is not None:
        yield "engineworks_preprocessing", json.dumps(m.preprocessing, sort_keys=True)


def _labels(m: Manifest) -> tuple[str, ...] | str:
    """Return the labels that Triton's classification may name, none where there are none, or why they are left out."""
    if not m.labels:
        return ()
    if m.scores == "distances":
        return "labels are left out: the scores are distances, and Triton's classification would name the farthest."
    if len(m.outputs) != 1 or len(m.outputs[0].shape) != 2 or m.outputs[0].shape[1] != len(m.labels):
        return f"labels are left out: there are {len(m.labels)}, for no output of ours (N, {len(m.labels)})."
    if any(len(label.splitlines()) > 1 or label != label.strip() for label in m.labels):
        return "labels are left out: one of them does not fit on a line of its own."
    return m.labels


def _notes(m: Manifest, engine: EngineRecord | None) -> Iterator[str]:
    free = batches(m)
    if m.preprocessing is not None:
        yield "Triton prepares no pictures: the client does, as the parameter engineworks_preprocessing says."
    if not free:
        yield "an input or output has no free batch axis: Triton joins no requests (max_batch_size 0)."
    elif m.batch.min > 1:
        yield f"Triton knows no smallest batch: of requests under {m.batch.min} rows, which nobody proved, beware."
    if sizeless := _sizeless(m, free):
        yield f"no warm-up: an axis of {', '.join(sizeless)} is free; Triton does not hold equal names to equal sizes."
    if engine:
        yield f"model.plan runs only on {', '.join(engine.targets)} in a Triton with TensorRT {engine.version}."
    elif not _cpu_runs(m):
        yield f"KIND_GPU: on a CPU ONNX Runtime lacks kernels for this graph ({m.precision.asked})."
    if passed := [item.file for item in m.engines if item is not engine]:
        yield f"left in the bundle: {', '.join(passed)} (Triton's folder holds one model; TensorRT-RTX it cannot run)."
    if not m.weights.trained:
        yield "the weights are UNTRAINED: its answers mean nothing."


def _lines(message: Message, indent: str = "") -> Iterator[str]:
    for key, value in message:
        if isinstance(value, tuple):
            yield f"{indent}{key} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _scalar(value: str | int | list[int]) -> str:
    if isinstance(value, str) and not isinstance(value, Word):
        text = value.replace("\\", "\\\\").replace('"', '\\"').encode()
        return '"' + "".join(chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}" for byte in text) + '"'
    return str(value)
