"""An index over an ONNX graph: who computes a tensor, who reads it, and what is constant.

Every node has a name here that no other has: an absent or repeated one is replaced by the node's first output.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
MODULE_KEY = "engineworks.module"  # under which export writes a node's PyTorch module


class Graph:
    """A copy of a model that may be edited through ``model``, and its index as the model was when it was read."""

    def __init__(self, model: "ModelProto") -> None:
        from onnx import ModelProto

        self.model = ModelProto()
        self.model.CopyFrom(model)
        self._name_nodes()
        graph = self.model.graph
        self.nodes: tuple[NodeProto, ...] = tuple(graph.node)
        self.by_name: dict[str, NodeProto] = {node.name: node for node in self.nodes}
        self.producer: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, position))
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.stored)
        self.outputs = tuple(value.name for value in graph.output)

    def _name_nodes(self) -> None:
        seen = Counter(node.name for node in self.model.graph.node)
        for node in self.model.graph.node:
            if not node.name or seen[node.name] > 1:
                node.name = next(name for name in node.output if name)

    def constant(self, name: str) -> Array | None:
        """Return the value of an initializer or of a Constant node, or None."""
        from onnx import numpy_helper

        if name in self.stored:
            return np.asarray(numpy_helper.to_array(self.stored[name]))
        node = self.producer.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return _constant_of(node)

    def is_constant(self, name: str) -> bool:
        """Tell whether a tensor is known before any input is."""
        node = self.producer.get(name)
        return name in self.stored or (node is not None and node.op_type == "Constant")

    def sole_reader(self, name: str) -> bool:
        """Tell whether exactly one node reads the tensor, once, and it is no output of the graph."""
        return len(self.readers.get(name, ())) == 1 and name not in self.outputs

    @cached_property
    def opset(self) -> int:
        """The version of ONNX's own operator set."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in {"", "ai.onnx"}), 0)

    @cached_property
    def names(self) -> set[str]:
        """Every tensor and node name in use."""
        graph = self.model.graph
        tensors = {name for node in self.nodes for name in (*node.input, *node.output)}
        values = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
        return tensors | values | set(self.stored) | set(self.by_name)

    def fresh(self, wanted: str) -> str:
        """Return a name that nothing in the graph has, and take it."""
        name, number = wanted, 1
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name

    def store(self, wanted: str, values: Array) -> str:
        """Add an initializer under a fresh name, and return that."""
        from onnx import numpy_helper

        name = self.fresh(wanted)
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        self.stored[name] = tensor
        return name

    def ancestors(self, name: str) -> dict[str, int]:
        """Return every tensor that one depends on → the fewest nodes between them; itself at 0."""
        found, frontier, distance = {name: 0}, [name], 0
        while frontier:
            distance += 1
            sources = [source for tensor in frontier for source in _inputs(self.producer.get(tensor))]
            frontier = [source for source in dict.fromkeys(sources) if source not in found]
            found.update(dict.fromkeys(frontier, distance))
        return found


def _inputs(node: "NodeProto | None") -> Iterator[str]:
    return (name for name in (() if node is None else node.input) if name)


def _constant_of(node: "NodeProto") -> Array:
    from onnx import numpy_helper

    item = node.attribute[0]
    if item.name == "value":
        return np.asarray(numpy_helper.to_array(item.t))
    kinds = {"value_float": (item.f, np.float32), "value_floats": (item.floats, np.float32)}
    value, kind = kinds.get(item.name, (item.i if item.name == "value_int" else list(item.ints), np.int64))
    return np.array(value, kind)


def attribute(node: "NodeProto", name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute: a number, a list, text as bytes; or the default."""
    from onnx import helper

    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def module_of(node: "NodeProto | None") -> str:
    """Return the PyTorch module that a node came from, or an empty string."""
    props = () if node is None else node.metadata_props
    return next((prop.value for prop in props if prop.key == MODULE_KEY), "")


def standard(node: "NodeProto") -> bool:
    """Tell whether the operator is ONNX's own."""
    return node.domain in {"", "ai.onnx"}
