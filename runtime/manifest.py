"""The manifest of a bundle: schema 1, typed, and its JSON text.

The text is deterministic: sorted keys, two spaces, one trailing newline. ``digest`` covers everything but itself and
``created``, so that an edited manifest is known before a single file of the bundle is opened.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from engineworks.runtime.errors import BundleError

SCHEMA = 1
T = TypeVar("T")
Scores = Literal["logits", "distances"]


@dataclass(frozen=True)
class Tensor:
    """One input or output: numpy dtype name, and a shape in which a named axis (``"batch"``) is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Batch:
    """The batch sizes for which the graph was checked and engines are built: smallest, usual, largest."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Model:
    """Which network this is: its name, family, paper, and number of parameters (buffers not counted)."""

    name: str
    family: str
    paper: str
    parameters: int


@dataclass(frozen=True)
class Weights:
    """Where the weights come from.

    ``origin`` is ``shipped``, ``published``, ``file`` or ``seed``; ``trained`` is False for ``seed`` alone. ``detail``
    is the seed, the file's name or the URL; ``sha256`` is the digest of the file, None for a seed.
    """

    origin: str
    detail: str
    trained: bool
    sha256: str | None
    licence: str | None


@dataclass(frozen=True)
class Precision:
    """The precision asked for, and the number of weighted layers (Conv, Gemm, MatMul…) of the graph in each type."""

    asked: str
    realised: Mapping[str, int]


@dataclass(frozen=True)
class Rung:
    """One comparison of two outputs on the same inputs: what against what, at which batch, and the figures.

    ``sqnr_db`` is the signal-to-noise ratio in decibels, None where the outputs are equal bit for bit;
    ``required_db`` is the least that passes and ``floor`` says where it comes from.
    """

    candidate: str
    reference: str
    output: str
    batch: int
    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float | None
    top1: float
    top5: float
    required_db: float
    floor: str


@dataclass(frozen=True)
class EngineRecord:
    """One compiled engine: its file, the compiler (``tensorrt`` or ``rtx``) and version, and the GPUs it runs on.

    ``layers`` counts the layers of the network given to the compiler, ``layer_types`` its convolutions and matrix
    multiplications by the type they compute in.
    """

    file: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    layers: int
    layer_types: Mapping[str, int]


@dataclass(frozen=True)
class FileRecord:
    """The digest and the size in bytes of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a bundle, in one value. ``created`` is UTC, ISO 8601."""

    name: str
    created: str
    model: Model
    weights: Weights
    precision: Precision
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scores: Scores
    batch: Batch
    preprocessing: Mapping[str, Any] | None
    labels: tuple[str, ...]
    graph: Mapping[str, Any]
    parity: tuple[Rung, ...]
    engines: tuple[EngineRecord, ...]
    notes: tuple[str, ...]
    recipe: Mapping[str, Any]
    tools: Mapping[str, str]
    files: Mapping[str, FileRecord]
    schema: int = field(default=SCHEMA)

    @property
    def summary(self) -> str:
        """One line that names the network, its precision, and that it is untrained where it is."""
        state = "" if self.weights.trained else ", UNTRAINED weights: its answers mean nothing"
        return f"{self.name} ({self.model.name}, {self.precision.asked}{state})"


def dump(manifest: Manifest) -> str:
    """Write the manifest as JSON text, its own digest included."""
    content = asdict(manifest)
    content["digest"] = _digest(content)
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str, where: str) -> Manifest:
    """Read a manifest from JSON text.

    Args:
        text: what ``dump`` wrote.
        where: the bundle's name, for messages.

    Raises:
        BundleError: not JSON, another schema, a missing or mistyped field, or edited since it was written.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle {where}: manifest.json is not JSON ({error}). Re-run export-model.") from error
    _check_schema(content, where)
    try:
        if content.pop("digest", None) != _digest(content):
            raise BundleError(
                f"bundle {where}: manifest.json was edited or cut since it was written. Re-run export-model."
            )
        return _in_order(_manifest(content))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {where}: manifest.json lacks or mistypes a field: {error!s}.") from error


def _in_order(manifest: Manifest) -> Manifest:
    batch = manifest.batch
    if not 1 <= batch.min <= batch.opt <= batch.max:
        raise ValueError(f"batch: expected 1 ≤ min ≤ opt ≤ max, got {batch}")
    return manifest


def _check_schema(content: Any, where: str) -> None:
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema == SCHEMA and not isinstance(schema, bool):
        return
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"bundle {where}: schema {schema} is later than this version reads ({SCHEMA}). "
            "Update it: pip install -U engineworks"
        )
    raise BundleError(f"bundle {where}: expected schema {SCHEMA} in manifest.json, got {schema!r}.")


def _digest(content: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in content.items() if key not in {"created", "digest"}}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(content: dict[str, Any]) -> Manifest:
    records: dict[str, Any] = {
        "model": _record(Model, content["model"]),
        "weights": _record(Weights, content["weights"]),
        "precision": _record(Precision, content["precision"]),
        "batch": _record(Batch, content["batch"]),
        "inputs": tuple(_tensor(item) for item in _items(content, "inputs")),
        "outputs": tuple(_tensor(item) for item in _items(content, "outputs")),
        "parity": tuple(_record(Rung, item) for item in _items(content, "parity")),
        "engines": tuple(
            _record(EngineRecord, item | {"targets": _items(item, "targets")}) for item in _items(content, "engines")
        ),
        "files": {name: _record(FileRecord, item) for name, item in content["files"].items()},
        "labels": _items(content, "labels"),
        "notes": _items(content, "notes"),
    }
    return _record(Manifest, content | records)


def _tensor(item: dict[str, Any]) -> Tensor:
    return _record(Tensor, item | {"shape": _items(item, "shape")})


def _items(content: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    if not isinstance(content[name], list):
        raise TypeError(f"{name}: expected a list, got {content[name]!r}")
    return tuple(content[name])


def _record(kind: type[T], content: Mapping[str, Any]) -> T:
    """Build a record from the fields it knows; a later writer may add some, and may not drop any."""
    hints = get_type_hints(kind)
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        value = content[item.name]
        hint = hints[item.name]
        if not _fits(value, hint):
            expected = hint.__name__ if isinstance(hint, type) else hint
            raise TypeError(f"{kind.__name__}.{item.name}: expected {expected}, got {value!r}")
        values[item.name] = value
    return kind(**values)


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a value is of the type that a field declares; True is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or origin is Literal:
        return hint is Any or value in args
    if origin is UnionType:
        return any(_fits(value, choice) for choice in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(item, args[1]) for item in value.values())
    if isinstance(value, bool) or hint is NoneType:
        return hint is bool or value is None
    return isinstance(value, (int, float) if hint is float else hint)
