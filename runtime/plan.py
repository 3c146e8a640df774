"""The kernels of a TensorRT-RTX engine, read from the plan itself: types, sizes, provenance, bytes moved; no GPU.

The plan's text is the only proof on a host without GPU of what an engine computes in (see ``plan_text``). It is known
for the versions in ``KNOWN``; a plan of any other is "not readable", and so is one in which anything is odd.
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engineworks.runtime.errors import PlanError
from engineworks.runtime.plan_text import ENGINE, FUSED, Block, PlanTensor, Statement, read_blocks

KNOWN = ("1.7.1.116",)
"""The versions of TensorRT-RTX whose plans were looked into."""

FUNCTION = "function"
"""The kind of a kernel that goes by its own name."""

_HEADER = struct.Struct("<4s12xQ4B")
_NO_KERNEL = {"signal", "wait", "shape_call"}
_PRODUCTS = {"corrltn": "convolution", "deconvolution": "deconvolution", "fully_connected": "matrix product"}
_LAYER = re.compile(r"\[ONNX Layer: ([^\x1f]*?)\](?=\x1f|\[ONNX Layer: |__|$)")


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product inside a kernel: the types of its two operands, and what it costs.

    ``positions`` is how often each weight is used: multiply-adds are ``positions`` × weights, padding of channels to
    what the kernel wants among them.
    """

    kind: str
    types: tuple[str, str]
    positions: int
    multiply_adds: int

    @property
    def computes_in(self) -> str:
        """The type of both operands, or both where they differ."""
        left, right = self.types
        return left if left == right else f"{left}×{right}"


@dataclass(frozen=True)
class Kernel:
    """One kernel launch, in order: what it reads and writes, the ONNX layers it comes from, the products it computes.

    ``bytes`` counts each tensor once, whole: caches and overlapping windows are not guessed.
    """

    kind: str
    name: str
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    layers: tuple[str, ...]
    products: tuple[Product, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Return the bytes read and written, weights among them."""
        return sum(tensor.bytes for tensor in {t.name: t for t in (*self.inputs, *self.outputs)}.values())


@dataclass(frozen=True)
class Plan:
    """An engine's kernels for one batch, with its compiler's version and its targets."""

    version: str
    targets: tuple[str, ...]
    batch: int
    kernels: tuple[Kernel, ...] = field(repr=False)
    compiler: str = "TensorRT-RTX"

    @property
    def bytes(self) -> int:
        """Return the bytes that all kernels move."""
        return sum(kernel.bytes for kernel in self.kernels)


def read_plan(plan: bytes, batch: int | None = None) -> Plan:
    """Read the kernels out of an RTX plan.

    Args:
        plan: the whole file.
        batch: how many rows, where the batch is free; a fixed one stays what it is.

    Raises:
        PlanError: not an RTX plan, of a version that is not known, damaged, or its batch is free and none was given;
            the message says which.
    """
    version = _version(plan)
    blocks = read_blocks(plan, batch)
    kernels: list[Kernel] = []
    for begin, block in enumerate(blocks):
        if block.version == ENGINE:
            fused = []
            for later in blocks[begin + 1 :]:
                if later.version != FUSED:
                    break
                fused.append(later)
            kernels += _kernels(block, fused)
    return Plan(version, blocks[0].targets, _batch(blocks[0], batch), tuple(kernels))


def _version(plan: bytes) -> str:
    if len(plan) < 64 or plan[:4] != b"vtrt":
        raise PlanError("not readable: no TensorRT-RTX plan")
    _, size, *numbers = _HEADER.unpack_from(plan)
    version = ".".join(map(str, numbers))
    if version not in KNOWN:
        raise PlanError(f"not readable: a plan of TensorRT-RTX {version}; known is {', '.join(KNOWN)}")
    if size != len(plan):
        raise PlanError(f"not readable: the plan says that it has {size} bytes and has {len(plan)}")
    return version


def _batch(block: Block, batch: int | None) -> int:
    """Return the first size of the first input; a scalar has none."""
    first = _tensors(block, block.inputs[:1])
    if not first:
        raise PlanError("not readable: the plan has no inputs")
    return first[0].dims[0] if first[0].dims else batch or 1


def _kernels(block: Block, fused: Sequence[Block]) -> Iterator[Kernel]:
    for statement in block.statements:
        if statement.kind in _NO_KERNEL:
            continue
        inputs = _tensors(block, statement.names("input_args", "input"))
        outputs = _tensors(block, statement.names("output_args", "output"))
        if not outputs:
            raise PlanError(f"not readable: an unknown statement, {statement.kind}")
        layers = tuple(dict.fromkeys(_LAYER.findall(statement.value("layers") or "")))
        name = statement.value("name") or statement.kind
        products = tuple(_products(block, fused, statement))
        yield Kernel(_PRODUCTS.get(statement.kind, statement.kind), name, inputs, outputs, layers, products)


def _tensors(block: Block, names: Sequence[str]) -> tuple[PlanTensor, ...]:
    missing = [name for name in names if name not in block.tensors]
    if missing:
        raise PlanError(f"not readable: the plan does not describe its tensor {missing[0]}")
    return tuple(block.tensors[name] for name in names if not block.tensors[name].on_host)


def _products(block: Block, fused: Sequence[Block], statement: Statement) -> Iterator[Product]:
    if statement.kind in _PRODUCTS:
        yield _product(block, statement)
    elif statement.kind == "runtime_fusion":
        number = statement.value("binary") or ""
        if not number.isdigit() or int(number) >= len(fused):
            raise PlanError(f"not readable: the plan lacks the text of its fused kernel {number}")
        inner = fused[int(number)]
        for part in inner.statements:
            if part.kind in _PRODUCTS:
                yield _product(inner, part)


def _product(block: Block, statement: Statement) -> Product:
    operands = _tensors(block, statement.names("input")[:2])
    (made,) = _tensors(block, statement.names("output")[:1])
    if len(operands) != 2 or min(len(tensor.dims) for tensor in (*operands, made)) < 2:
        raise PlanError(f"not readable: {statement.kind} without two operands")
    left, right = operands
    types = (left.dtype, right.dtype)
    kind = _PRODUCTS[statement.kind]
    if kind == "matrix product":
        return _matrix_product(statement, types, left, right, made)
    whole = left if kind == "deconvolution" else made
    positions = math.prod(whole.dims) // whole.dims[1]
    return Product(kind, types, positions, math.prod(whole.dims) * math.prod(right.dims[1:]))


def _matrix_product(
    statement: Statement, types: tuple[str, str], left: PlanTensor, right: PlanTensor, made: PlanTensor
) -> Product:
    """Tell rows from weights: a convolution of one pixel is written as weights × pixels, all else as rows × weights."""
    if statement.value("trA") != "false" or statement.value("trB") != "false":
        raise PlanError("not readable: a matrix product with turned operands")
    turned = len(left.dims) > 2 and left.dims[0] == 1 < made.dims[0]
    weights_axis = made.dims[-2] if turned else made.dims[-1]
    return Product("matrix product", types, math.prod(made.dims) // weights_axis, math.prod(made.dims) * left.dims[-1])
