"""What an engine really computes in, layer by layer: its plan's kernels joined with the graph they come from.

The network given to a compiler says what was asked; its plan says what became of that. TensorRT-RTX's plans are read
without a GPU and without the compiler (``plan``, ``graph_layers``), TensorRT's own by its inspector, on a GPU
(``trt_inspector``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engineworks.runtime.graph_layers import PRODUCTS, GraphLayer, read_layers
from engineworks.runtime.plan import FUNCTION, Kernel, Plan, read_plan

NOT_SEEN = "not seen"
_FRAME = {"QuantizeLinear", "DequantizeLinear", "Cast"}


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product of the graph: the type asked for, the type found, and its multiply-adds.

    ``found`` is ``not seen`` where no kernel names the layer, or none tells in what it computes it; its multiply-adds
    are then not known and 0.
    """

    name: str
    operator: str
    module: str
    asked: str
    found: str
    kernel: str
    multiply_adds: int

    @property
    def realised(self) -> bool:
        """Tell whether it computes in what was asked for."""
        return self.asked == self.found


@dataclass(frozen=True)
class Row:
    """One kernel: the ONNX layers in it, the chief one's module and type asked, what was found, bytes moved.

    ``found`` is the type of a product's operands; of any other kernel what its largest input and its output hold.
    """

    layers: tuple[str, ...]
    module: str
    asked: str
    found: str
    kernel: str
    bytes: int
    multiply_adds: int


@dataclass(frozen=True)
class Xray:
    """An engine looked into, for one batch."""

    version: str
    targets: tuple[str, ...]
    batch: int
    rows: tuple[Row, ...] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    """The graph's products; empty where there was no graph to join with."""
    compiler: str = "TensorRT-RTX"

    @property
    def bytes(self) -> int:
        """Return the bytes that all kernels move."""
        return sum(row.bytes for row in self.rows)

    def unrealised(self) -> tuple[Layer, ...]:
        """Return the layers that compute in another type than asked, or that no kernel names."""
        return tuple(layer for layer in self.layers if not layer.realised)

    def share(self, kind: str) -> float:
        """Return the share of all products' multiply-adds, 0 to 1, that was found to run in a type."""
        whole = sum(layer.multiply_adds for layer in self.layers)
        return sum(layer.multiply_adds for layer in self.layers if layer.found == kind) / whole if whole else 0.0


def look_into(plan: bytes, graph: bytes | None = None, batch: int | None = None) -> Xray:
    """Read an engine's plan, and hold it against the graph that it was built from.

    Args:
        plan: a TensorRT-RTX plan, the whole file.
        graph: the ONNX model, or None where it is not at hand: nothing is then known of what was asked.
        batch: how many rows, where the batch is free.

    Raises:
        PlanError: the plan is not readable; the message says why.
        BundleError: the graph is not.
    """
    return join(read_plan(plan, batch), graph)


def join(found: Plan, graph: bytes | None) -> Xray:
    """Hold an engine's kernels, wherever they were read, against the graph that it was built from.

    Raises:
        BundleError: the graph is not readable.
    """
    known = {layer.name: layer for layer in read_layers(graph)} if graph is not None else {}
    rows = tuple(_row(kernel, known) for kernel in found.kernels)
    return Xray(found.version, found.targets, found.batch, rows, tuple(_layers(found.kernels, known)), found.compiler)


def _layers(kernels: Sequence[Kernel], known: Mapping[str, GraphLayer]) -> list[Layer]:
    seen: dict[str, Layer] = {}
    for kernel in kernels:
        for layer in _products(kernel, known) if kernel.products else ():
            before = seen.get(layer.name)
            found = _types(kernel)
            if before is not None and before.found != found:
                found = f"{before.found}, {found}"
            cost = (0 if before is None else before.multiply_adds) + _multiply_adds(kernel, layer, known)
            seen[layer.name] = Layer(layer.name, layer.operator, layer.module, layer.asked, found, kernel.name, cost)
    return [
        seen.get(layer.name, Layer(layer.name, layer.operator, layer.module, layer.asked, NOT_SEEN, "", 0))
        for layer in known.values()
        if layer.operator in PRODUCTS
    ]


def _products(kernel: Kernel, known: Mapping[str, GraphLayer]) -> list[GraphLayer]:
    layers = (known.get(name) for name in kernel.layers)
    return [layer for layer in layers if layer is not None and layer.operator in PRODUCTS]


def _types(kernel: Kernel) -> str:
    return ", ".join(dict.fromkeys(product.computes_in for product in kernel.products))


def _multiply_adds(kernel: Kernel, layer: GraphLayer, known: Mapping[str, GraphLayer]) -> int:
    """Count by the graph's own weights: a kernel's are padded to the channels that it wants."""
    sharing = _products(kernel, known)
    if layer.weights and len(kernel.products) == 1:
        return kernel.products[0].positions * math.prod(layer.weights)
    return sum(product.multiply_adds for product in kernel.products) // len(sharing)


def _row(kernel: Kernel, known: Mapping[str, GraphLayer]) -> Row:
    layers = [known[name] for name in kernel.layers if name in known]
    chiefs = (_products(kernel, known) if kernel.products else []) or [x for x in layers if x.operator not in _FRAME]
    chief = next(iter(chiefs or layers), None)
    first = [] if chief is None else [chief.name]
    return Row(
        tuple(dict.fromkeys([*first, *kernel.layers])),
        "" if chief is None else chief.module,
        "" if chief is None or (chief.operator in PRODUCTS and not kernel.products) else chief.asked,
        _types(kernel) or _carried(kernel),
        kernel.name if kernel.kind in {FUNCTION, "runtime_fusion"} else kernel.kind,
        kernel.bytes,
        sum(product.multiply_adds for product in kernel.products),
    )


def _carried(kernel: Kernel) -> str:
    """Say what a kernel that computes no product carries from where to where."""
    made = kernel.outputs[0].dtype
    if not kernel.inputs:
        return made
    read = max(kernel.inputs, key=lambda tensor: tensor.bytes).dtype
    return made if read == made else f"{read}→{made}"
