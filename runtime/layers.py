"""Every layer of a bundle's graph again, on this host: against what it computed where it was proven, without PyTorch.

``export-model --layers`` keeps a few values of each tensor, the original's and the graph's. Here ONNX Runtime runs the
graph with all of them as outputs. Each must come as near to the original's as it did there, less one bit, and what
chance does to a mean of few.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.backend import open_session
from engineworks.runtime.bundle import GRAPH, LAYER_VALUES, LAYERS, Bundle
from engineworks.runtime.compare import Floats, sqnr
from engineworks.runtime.errors import BackendError, BundleError
from engineworks.runtime.intervals import chance
from engineworks.runtime.parity import stored_reference
from engineworks.runtime.protocol import Array, Device
from engineworks.runtime.sketch import sketch

_ROWS = 2
_MARGIN = 2.0  # one bit, in amplitude
_GRAPH_FIELD, _OUTPUT_FIELD, _NAME_FIELD = 7, 12, 1  # of ModelProto, GraphProto and ValueInfoProto (onnx.proto3)


@dataclass(frozen=True)
class LayerAgain:
    """One value on this host: decibels against the original's now and where it was proven, and its worst channel.

    ``excess`` is how many times as large that channel's difference is as it may be.
    """

    value: str
    module: str
    db: float
    proven_db: float
    channel: int
    channels: int
    excess: float

    @property
    def passed(self) -> bool:
        """Whether it is as near to the original's as it was, less one bit."""
        return self.excess <= 1


@dataclass(frozen=True)
class LayersAgain:
    """All values that one backend computed; ``problem`` says why it did not, where it did not."""

    backend: str
    layers: tuple[LayerAgain, ...] = ()
    problem: str = ""

    @property
    def wrong(self) -> LayerAgain | None:
        """The first value, in the order of computing, that is further from the original's than it was."""
        return next((layer for layer in self.layers if not layer.passed), None)


def check_layers(bundle: Bundle, device: Device = "auto") -> Iterator[LayersAgain]:
    """Compare every value of a bundle's graph on each of ONNX Runtime's backends here.

    Args:
        bundle: made with ``--layers``.
        device: ``auto`` for the CPU and a GPU, where one works; else that one alone.

    Raises:
        BundleError: it was made without ``--layers``, or a file is damaged.
    """
    missing = [name for name in (LAYERS, LAYER_VALUES) if name not in bundle.manifest.files]
    if missing:
        raise BundleError(f"bundle {bundle.path.name}: it holds no {missing[0]}. Re-run export-model with --layers.")
    modules = {layer["value"]: layer["module"] for layer in json.loads(bundle.read(LAYERS))}
    with np.load(io.BytesIO(bundle.read(LAYER_VALUES)), allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    stored = stored_reference(bundle)
    places: list[Device] = ["cpu", "cuda"] if device == "auto" else [device]
    for place in places:
        try:
            values = _values(bundle, place, stored, [name for name in modules if name in kept])
        except BackendError as error:
            yield LayersAgain(f"onnxruntime-{place}", problem=str(error))
            continue
        layers = tuple(_again(name, modules[name], kept[name], value) for name, value in values)
        yield LayersAgain(f"onnxruntime-{place}", layers)


def _values(bundle: Bundle, place: Device, stored: dict[str, Array], names: Sequence[str]) -> list[tuple[str, Floats]]:
    manifest = bundle.manifest
    on_cpu = place == "cpu" and manifest.precision.asked != "int8"  # int8's own graph for CPUs has other values
    graph = bundle.read(str(manifest.graph.get("cpu", GRAPH)) if on_cpu else GRAPH)
    session = open_session(
        exposed(graph, names), place, strict=place != "cpu", optimise="none" if place == "cpu" else "all"
    )
    rows = min(max(_ROWS, manifest.batch.min), manifest.batch.max)
    inputs = {
        tensor.name: np.take(array, np.arange(rows) % len(array), axis=0)
        for tensor in manifest.inputs
        for array in [stored[f"input:{tensor.name}"]]
    }
    try:
        answers = session.run(inputs, list(names))
    finally:
        session.close()
    return [(name, np.asarray(answer, np.float32)) for name, answer in zip(names, answers, strict=True)]


def _again(name: str, module: str, kept: Array, value: Floats) -> LayerAgain:
    """Hold a value's sketch against what was kept: the original's, and the graph's where it was proven."""
    true, proven = kept[0].astype(np.float64), kept[1].astype(np.float64)
    now = sketch(value).astype(np.float64)
    if now.shape != true.shape:
        raise BundleError(f"value {name}: expected {true.shape} kept values, got {now.shape}. Re-run export-model.")
    before, after = _noise(proven - true), _noise(now - true)
    allowed = _MARGIN * chance(now.shape[1]) * np.maximum(before, _noise((proven - true).reshape(1, -1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(after == 0, 0.0, after / allowed)
    excess[~np.isfinite(after)] = math.inf
    channel = int(excess.argmax())
    finite = bool(np.isfinite(now).all())
    db = sqnr(true, now) if finite else -math.inf
    return LayerAgain(name, module, db, sqnr(true, proven), channel, len(excess), float(excess[channel]))


def _noise(difference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.sqrt(np.square(difference).mean(axis=1))
    return found


def exposed(graph: bytes, names: Sequence[str]) -> bytes:
    """Return a serialised graph with more outputs.

    Two messages that are written one behind the other are read as one, their lists joined (Protocol Buffers, Encoding,
    "Last One Wins"); so the names are appended, and nothing of the graph is parsed.
    """
    outputs = b"".join(_field(_OUTPUT_FIELD, _field(_NAME_FIELD, name.encode())) for name in names)
    return graph + _field(_GRAPH_FIELD, outputs)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def layer_lines(found: LayersAgain) -> Iterator[str]:
    """Yield what a person reads of one backend's layers."""
    if found.problem:
        yield f"{found.backend:<18} not run: {found.problem}"
        return
    wrong = found.wrong
    if wrong is None:
        worst = max(found.layers, key=lambda layer: layer.excess)
        yield (
            f"{found.backend:<18} {len(found.layers)} values are as near to the original's as where they were proven; "
            f"the furthest is {worst.module or worst.value}, at {worst.excess:.2g} of what may be"
        )
        return
    yield (
        f"{found.backend:<18} FAILS: the error enters at {wrong.module or 'the network itself'} ({wrong.value}), "
        f"channel {wrong.channel} of {wrong.channels}: {_db(wrong.db)} against the original's, {_db(wrong.proven_db)} "
        f"where it was proven; {wrong.excess:.3g} times the difference that may be"
    )


def _db(value: float) -> str:
    return "equal" if value == math.inf else f"{value:.1f} dB"


def as_record(found: LayersAgain) -> dict[str, Any]:
    """Return the figures of one backend's layers for JSON."""
    from dataclasses import asdict

    return asdict(found) | {"passed": not found.problem and found.wrong is None}
