"""``calibration.json``: how a network's scales came about, to be kept in the bundle and used again (``--calib-cache``).

The text is deterministic: sorted keys, two spaces, one trailing newline. ``digest`` covers everything but itself, so
that an edited file is known; the hashes of graph and images tell a stale one.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.calibration.observe import Statistics
from engineworks.runtime.errors import ExportError
from engineworks.runtime.preprocessing import Preprocessing

if TYPE_CHECKING:
    from onnx import ModelProto

SCHEMA = 2  # since channels are equalised before they are observed
FILE = "calibration.json"
_BINS = 64  # of the many that were counted: enough to see
_AGAIN = "Calibrate again without --calib-cache"


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: its scale, the smallest and largest value that was seen of it, and what else could have been chosen.

    ``candidates``: way of choosing ranges → scale. ``means``: of each channel. ``counts``: of the magnitudes, zeros
    left out, in equal bins up to ``end``.
    """

    scale: float
    minimum: float
    maximum: float
    candidates: Mapping[str, float] = field(default_factory=dict)
    means: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    end: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Everything that decided a network's scales.

    Attributes:
        method: what was asked for: a method that ``scales`` takes, or ``auto``.
        tensors: name → scale and range.
        graph: sha256 of the float32 graph, as ``graph_sha256`` makes it.
        images: sha256 of the images' content, as ``Images.sha256`` has it.
        description: where the images come from.
        count: how many there were.
        every: how the histograms sampled; 1 is every element.
        preprocessing: the recipe, as JSON, or None.
        left: layer → why it stays in higher precision.
        budget: with an accuracy budget, what it was, what it was judged on, every trial; else None.
        tools: name → version.
        chosen: the method whose scales ``tensors`` has.
        decisions: for each tensor at each node: ``node``, ``tensor``, ``role``, ``quantised``, ``rule`` and ``why``.
        steps: each stage's ``name``, and ``sqnr_db``, ``typical_db`` and ``top1`` of the held-out images' answers.
    """

    method: str
    tensors: Mapping[str, TensorRecord]
    graph: str
    images: str
    description: str
    count: int
    every: int
    preprocessing: Mapping[str, Any] | None
    left: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    chosen: str = ""
    decisions: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    budget: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    @property
    def scales(self) -> dict[str, float]:
        """Tensor name → scale."""
        return {name: tensor.scale for name, tensor in self.tensors.items()}


def tensor_records(statistics: Statistics, candidates: Mapping[str, Mapping[str, float]]) -> dict[str, TensorRecord]:
    """Join what was observed of each tensor with its scales, by method; the first method's is taken for the moment."""
    first = next(iter(candidates.values()))
    return {
        name: TensorRecord(
            first[name],
            found.minimum,
            found.maximum,
            {method: scales[name] for method, scales in candidates.items()},
            tuple(found.means.tolist()),
            tuple(found.histogram.counts.reshape(_BINS, -1).sum(1).tolist()),
            found.histogram.width * len(found.histogram.counts),
        )
        for name, found in statistics.tensors.items()
    }


def graph_sha256(model: "ModelProto | bytes") -> str:
    """Return the sha256 of a graph, serialised deterministically."""
    from onnx import ModelProto

    proto = ModelProto.FromString(model) if isinstance(model, bytes) else model
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def tool_versions() -> dict[str, str]:
    """Return the versions of what computes statistics and reads pictures."""
    import onnx
    import onnxruntime
    import PIL

    versions = {"numpy": np.__version__, "onnx": onnx.__version__, "pillow": PIL.__version__}
    return versions | {"onnxruntime": onnxruntime.__version__}


def dump_calibration(calibration: Calibration) -> bytes:
    """Write ``calibration.json``, its own digest included; the same bytes for the same content."""
    content = asdict(calibration)
    content["digest"] = _digest(content)
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load_calibration(content: bytes, where: str = FILE) -> Calibration:
    """Read ``calibration.json``.

    Args:
        content: what ``dump_calibration`` wrote.
        where: the file's name, for messages.

    Raises:
        ExportError: not JSON, another schema, edited since it was written, or a scale that cannot be one.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{where}: expected JSON, got something else ({error}). {_AGAIN}.") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise ExportError(f"{where}: expected schema {SCHEMA}, got {schema!r}. {_AGAIN}.")
    if values.pop("digest", None) != _digest(values):
        raise ExportError(f"{where}: was edited or cut since it was written. {_AGAIN}.")
    try:
        tensors = {name: _tensor(tensor) for name, tensor in values.pop("tensors").items()}
        decisions, steps = tuple(values.pop("decisions")), tuple(values.pop("steps"))
        made = Calibration(tensors=tensors, decisions=decisions, steps=steps, **values)
        _check_scales(made)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ExportError(f"{where}: lacks or mistypes a field: {error!s}. {_AGAIN}.") from error
    return made


def _tensor(content: dict[str, Any]) -> TensorRecord:
    return TensorRecord(**content | {name: tuple(content.get(name, ())) for name in ("means", "counts")})


def _check_scales(calibration: Calibration) -> None:
    for name, tensor in calibration.tensors.items():
        for scale in (tensor.scale, *tensor.candidates.values()):
            if not (isinstance(scale, float) and math.isfinite(scale) and scale > 0):
                raise ValueError(f"tensor {name!r} has a scale of {scale!r}")


def check_fresh(
    calibration: Calibration,
    *,
    graph: str,
    images: str,
    preprocessing: Preprocessing | None,
    method: str,
    where: str = FILE,
) -> None:
    """Refuse a cached calibration that was made of something else.

    Args:
        calibration: what was kept.
        graph: sha256 of the graph now.
        images: sha256 of the images now.
        preprocessing: how the images are prepared now.
        method: what is asked for now.
        where: the file's name, for messages.

    Raises:
        ExportError: naming what differs. Other versions of tools do not: they are recorded, and change last bits.
    """
    recipe = None if preprocessing is None else preprocessing.to_json()
    pairs = {
        "graph": (calibration.graph, graph),
        "images": (calibration.images, images),
        "preprocessing": (calibration.preprocessing, recipe),
        "method": (calibration.method, method),
    }
    stale = [(what, then, now) for what, (then, now) in pairs.items() if then != now]
    if stale:
        what, then, now = stale[0]
        other = "other" if what == "images" else "another"
        raise ExportError(f"{where}: was made with {other} {what}: {_short(then)}, now {_short(now)}. {_AGAIN}.")


def _short(value: object) -> str:
    text = str(value)
    return f"sha256 {text[:12]}…" if len(text) == 64 and text.isalnum() else text


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
