"""Hold a compiled engine against its graph: what its own plan says it computes in must be what was asked for.

``precision`` counts what the graph and the compiler's network say; a compiler may still do otherwise without a word.
TensorRT-RTX 1.7 takes INT8 graphs for sm75 and computes them in float16, on every other target of the same engine too;
it computes int8 transposed convolutions in float16 on all targets; and it narrows a float32 convolution between two
casts to float16. Its plans are read from their text; TensorRT's own by its inspector, on the GPU that compiled them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engineworks.export.engine import Engine
from engineworks.runtime.errors import ExportError, PlanError
from engineworks.runtime.trt_inspector import read_engine
from engineworks.runtime.xray import NOT_SEEN, Layer, Xray, join, look_into

_SHOWN = 5


@dataclass(frozen=True)
class Shown:
    """What a plan shows, in words; a warning where it does not show everything."""

    words: str
    warning: bool


def check_engine(engine: Engine, graph: bytes) -> Shown:
    """Look into an engine, and compare each weighted layer's type with the graph's.

    Args:
        engine: as ``compile_engine`` returned it.
        graph: the ONNX model that it was compiled from.

    Raises:
        ExportError: naming the layers that compute in another type than asked.

    A plan that is not readable (of an unknown version, or told in an unknown way) proves nothing either way, and that
    is said; so are layers of which no kernel tells in what it computes them.
    """
    try:
        found = _look(engine, graph)
    except PlanError as error:
        return Shown(str(error), True)
    unseen = [layer for layer in found.unrealised() if layer.found == NOT_SEEN]
    wrong = [layer for layer in found.unrealised() if layer.found != NOT_SEEN]
    if wrong:
        raise ExportError(
            f"{len(wrong)} of {len(found.layers)} layers do not compute in the engine for {', '.join(engine.targets)} "
            f"as asked: {_named(wrong)}. Leave out the target that cannot, ask for another precision, or --engine none."
        )
    if unseen:
        return Shown(f"{len(unseen)} of {len(found.layers)} layers are seen in no kernel: {_named(unseen)}", True)
    kinds = ", ".join(f"{kind} {found.share(kind):.1%}" for kind in sorted({layer.found for layer in found.layers}))
    return Shown(f"all {len(found.layers)} weighted layers as asked; multiply-adds: {kinds or 'none'}", False)


def _look(engine: Engine, graph: bytes) -> Xray:
    if engine.flavour == "rtx":
        return look_into(engine.plan, graph, engine.batch[1])
    found = read_engine(engine.plan, version=engine.version, targets=engine.targets, batch=engine.batch[1])
    return join(found, graph)


def _named(layers: Sequence[Layer]) -> str:
    shown = [f"{layer.name} (asked {layer.asked}, found {layer.found})" for layer in layers[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else "")
