"""What ``inspect-model --layers`` prints: every engine of a bundle, or one engine's file, kernel by kernel."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from engineworks.runtime.bundle import GRAPH, Bundle, open_bundle
from engineworks.runtime.errors import BundleError, PlanError
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.trt_inspector import read_engine
from engineworks.runtime.xray import NOT_SEEN, Layer, Xray, join, look_into

_WIDTHS = (48, 30)  # of layers and modules; longer ones are cut, the JSON has them whole


def xrays(path: Path | str, batch: int | None = None) -> list[tuple[str, Xray]]:
    """Look into each engine of a bundle, or into one engine's file; return names and findings.

    Args:
        path: a bundle's folder, or a TensorRT-RTX plan: its types are then known, and not what was asked. Engines of
            TensorRT itself are read in their bundle alone, whose digests are checked, and on a GPU that they fit.
        batch: how many rows, where the batch is free; the bundle's usual one if None.

    Raises:
        BundleError: no bundle, damaged, or without an engine.
        PlanError: an engine is not readable.
    """
    try:
        content = Path(path).read_bytes() if Path(path).is_file() else None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}.") from error
    if content is not None:
        name = Path(path).name
        return [(name, _named(name, lambda: _alone(content, batch)))]
    bundle = open_bundle(path)
    if not bundle.manifest.engines:
        raise BundleError(f"bundle {bundle.path.name}: has no engine to look into. Export it where a compiler is.")
    return [(engine.file, _of_bundle(bundle, engine, batch)) for engine in bundle.manifest.engines]


def _alone(plan: bytes, batch: int | None) -> Xray:
    try:
        return look_into(plan, None, batch)
    except PlanError as error:
        if plan[:4] == b"vtrt":
            raise
        raise PlanError(f"{error}; engines of TensorRT itself are read in their bundle") from error


def _of_bundle(bundle: Bundle, engine: EngineRecord, batch: int | None) -> Xray:
    limits = bundle.manifest.batch
    if batch is not None and not limits.min <= batch <= limits.max:
        raise BundleError(f"bundle {bundle.path.name}: batch {batch} is outside {limits.min} to {limits.max}.")
    rows, plan, graph = batch or limits.opt, bundle.read(engine.file), bundle.read(GRAPH)
    return _named(f"{bundle.path.name}, {engine.file}", lambda: _looked_into(engine, plan, graph, rows))


def _looked_into(engine: EngineRecord, plan: bytes, graph: bytes, batch: int) -> Xray:
    if engine.flavour == "tensorrt":
        return join(read_engine(plan, version=engine.version, targets=engine.targets, batch=batch), graph)
    return look_into(plan, graph, batch)


def _named(name: str, look: Callable[[], Xray]) -> Xray:
    try:
        return look()
    except PlanError as error:
        raise PlanError(f"{name}: {error}.") from error


def layer_lines(name: str, xray: Xray) -> Iterator[str]:
    """Yield the lines that tell a person what an engine computes in."""
    yield f"{name}: {xray.compiler} {xray.version} for {', '.join(xray.targets)}, batch {xray.batch}"
    lines: list[tuple[str, ...]] = [("layers", "module", "asked", "found", "MB", "kernel")]
    for row in xray.rows:
        layers = _cut(_joined(row.layers), _WIDTHS[0])
        cells = (layers, _cut(row.module, _WIDTHS[1]), row.asked, row.found, f"{row.bytes / 1e6:.3f}", row.kernel)
        lines.append(tuple(cell or "-" for cell in cells))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        left = "  ".join(cell.ljust(width) for cell, width in zip(line[:4], widths, strict=False))
        yield f"  {left}  {line[4].rjust(widths[4])}  {line[5]}"
    yield from total_lines(xray)


def total_lines(xray: Xray) -> Iterator[str]:
    """Yield an engine's totals: kernels, bytes, and what share runs in the type asked for."""
    least = "at least " if any(layer.found == NOT_SEEN for layer in xray.layers) else ""
    yield f"  total      {len(xray.rows)} kernels move {least}{xray.bytes / 1e6:.1f} MB a batch of {xray.batch}"
    if not xray.layers:
        yield "  realised   not known: an engine alone does not say what was asked"
        return
    products = {"convolutions": [x for x in xray.layers if x.operator.startswith("Conv")], "all": list(xray.layers)}
    conv, every = (f"{sum(x.realised for x in layers)} of {len(layers)}" for layers in products.values())
    kinds = dict.fromkeys(layer.found for layer in xray.layers)
    shares = ", ".join(f"{kind} {xray.share(kind):.1%}" for kind in kinds)
    yield f"  realised   {conv} convolutions and {every} weighted layers as asked; multiply-adds: {shares}"
    for layer in xray.unrealised():
        yield f"  not as asked  {describe_layer(layer)}"


def describe_layer(layer: Layer) -> str:
    """Name a layer, what it was asked to compute in, and what it does."""
    module = f" ({layer.module})" if layer.module else ""
    return f"{layer.name}{module}: asked {layer.asked}, found {layer.found}"


def to_json(found: Iterable[tuple[str, Xray]]) -> str:
    """Write findings as JSON: all rows, all layers, totals."""
    content = [
        asdict(xray)
        | {
            "engine": name,
            "bytes": xray.bytes,
            "realised": {
                "layers": sum(layer.realised for layer in xray.layers),
                "of": len(xray.layers),
                "multiply_adds": {kind: xray.share(kind) for kind in sorted({layer.found for layer in xray.layers})},
            },
        }
        for name, xray in found
    ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _joined(layers: tuple[str, ...]) -> str:
    more = f" +{len(layers) - 1}" if len(layers) > 1 else ""
    return (layers[0] if layers else "") + more


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width // 2) :]}"
