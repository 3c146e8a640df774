"""The layers of an ONNX graph, read straight from its bytes: names, modules, types, sizes of weights; no onnx needed.

Of protobuf's wire format only what is asked for is looked at: weights are stepped over, so that a graph of any size is
read in milliseconds (Protocol Buffers, Encoding; onnx.proto3 for the numbers of the fields).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engineworks.runtime.errors import BundleError

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose precision is asked for and counted."""

_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
_TYPES |= {16: "bfloat16"}
_MODULE_KEY = "engineworks.module"
_FIXED = {1: 8, 5: 4}  # wire types of a fixed length
Field = int | memoryview


@dataclass(frozen=True)
class GraphLayer:
    """One node: its ONNX name as TensorRT spells it, operator, PyTorch module (empty where unknown), and type.

    ``asked`` is what it computes in as the graph has it: ``int8`` where both operands come from a DequantizeLinear.
    ``weights`` are the sizes of a product's second operand, empty where that is no constant.
    """

    name: str
    operator: str
    module: str
    asked: str
    weights: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Return how many values a product makes of one position."""
        if not self.weights:
            return 0
        return self.weights[-1 if self.operator in {"Gemm", "MatMul"} else 0]


@dataclass(frozen=True)
class _Node:
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str
    operator: str
    module: str
    numbers: dict[str, int]


def read_layers(graph: bytes) -> list[GraphLayer]:
    """Read the layers of a serialised ONNX model, in order.

    Raises:
        BundleError: the bytes are no ONNX model.
    """
    try:
        body = next(value for number, value in _fields(memoryview(graph)) if number == 7)
        nodes, types, sizes = _contents(body)
    except (StopIteration, IndexError, ValueError, TypeError) as error:
        raise BundleError("the graph is no ONNX model that can be read. Re-run export-model.") from error
    return list(_layers(nodes, types, sizes))


def _layers(nodes: list[_Node], types: dict[str, str], sizes: dict[str, tuple[int, ...]]) -> Iterator[GraphLayer]:
    integers: set[str] = set()
    for node in nodes:
        kind = _computes_in(node, types)
        types |= dict.fromkeys(node.outputs, kind)
        if node.operator == "DequantizeLinear":
            integers.update(node.outputs)
        weights: tuple[int, ...] = ()
        if node.operator in PRODUCTS and len(node.inputs) > 1:
            weights = sizes.get(node.inputs[1], ())
            kind = "int8" if integers.issuperset(node.inputs[:2]) else kind
        if node.operator in {"DequantizeLinear", "Cast", "Identity"} and node.inputs[0] in sizes:
            sizes |= dict.fromkeys(node.outputs, sizes[node.inputs[0]])
        if node.operator == "Gemm" and node.numbers.get("transB"):
            weights = weights[::-1]
        yield GraphLayer(node.name or f"node_of_{node.outputs[0]}", node.operator, node.module, kind, weights)


def _computes_in(node: _Node, types: dict[str, str]) -> str:
    """Follow the types forward: a cast's, a scale's, else the first input's that is known."""
    if node.operator == "Cast":
        return _TYPES.get(node.numbers.get("to", 0), "unknown")
    if node.operator == "QuantizeLinear":
        return types.get(node.inputs[2], "uint8") if len(node.inputs) > 2 else "uint8"
    given = node.inputs[1:2] if node.operator == "DequantizeLinear" else node.inputs
    return next((types[name] for name in given if types.get(name, "unknown") != "unknown"), "unknown")


def _contents(graph: Field) -> tuple[list[_Node], dict[str, str], dict[str, tuple[int, ...]]]:
    nodes, types, sizes = list[_Node](), dict[str, str](), dict[str, tuple[int, ...]]()
    for number, value in _fields(graph):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, kind, dims = _tensor(value)
            types[name], sizes[name] = kind, dims
        elif number == 11:
            parts = dict(_fields(value))
            inner = dict(_fields(dict(_fields(parts[2])).get(1, memoryview(b"")))) if 2 in parts else {}
            types[_text(parts[1])] = _TYPES.get(_number(inner.get(1, 0)), "unknown")
    return nodes, types, sizes


def _node(content: Field) -> _Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    module, numbers = "", dict[str, int]()
    for number, value in _fields(content):
        if number in texts:
            texts[number].append(_text(value))
        elif number == 5:
            parts = dict(_fields(value))
            if isinstance(parts.get(3), int):
                numbers[_text(parts[1])] = _number(parts[3])
        elif number == 9:
            pair = dict(_fields(value))
            if _text(pair[1]) == _MODULE_KEY:
                module = _text(pair[2])
    name, operator = ("".join(texts[number][:1]) for number in (3, 4))
    return _Node(tuple(texts[1]), tuple(texts[2]), name, operator, module, numbers)


def _tensor(content: Field) -> tuple[str, str, tuple[int, ...]]:
    name, kind, dims = "", 0, list[int]()
    for number, value in _fields(content):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_packed(value))
        elif number == 2:
            kind = _number(value)
        elif number == 8:
            name = _text(value)
    return name, _TYPES.get(kind, "unknown"), tuple(dims)


def _fields(content: Field) -> Iterator[tuple[int, Field]]:
    """Yield the fields of a message: numbers as they are, what has a length as a view."""
    if isinstance(content, int):
        raise TypeError("a number where a message was expected")
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        length, place = _varint(content, place) if wire == 2 else (_FIXED.get(wire, -1), place)
        if length < 0 or place + length > len(content):
            raise ValueError("a field that is cut, or of an unknown kind")
        yield key >> 3, content[place : place + length]
        place += length


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        part = content[place]
        value |= (part & 127) << shift
        place, shift = place + 1, shift + 7
        if part < 128:
            return value, place


def _packed(content: memoryview) -> Iterator[int]:
    place = 0
    while place < len(content):
        value, place = _varint(content, place)
        yield value


def _text(value: Field) -> str:
    return bytes(value).decode() if not isinstance(value, int) else str(value)


def _number(value: Field) -> int:
    if not isinstance(value, int):
        raise TypeError("a message where a number was expected")
    return value
