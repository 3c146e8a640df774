"""An ONNX graph being written, operator by operator, with the shapes that PyTorch itself gave each value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.export.clean import MODULE_KEY
from engineworks.export.tidy import tidy
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto


class CannotTranslate(Exception):
    """This module, or something in it, is not for our own translation; the message says what."""


@dataclass
class Emitter:
    """Collects nodes and weights.

    ``shapes`` maps each value of the graph to its shape at ``rows`` rows, of which axis 0 is the batch; ``results``
    maps each node of the trace to the shape that PyTorch gave it (a node's name is not always its value's). ``names``
    maps the ``id`` of each of the module's own tensors to its PyTorch name; ``reserved`` are the names of the inputs
    and outputs. What is stored or computed on the way for a node is called ``node/what``. A name that is taken gets
    underscores. ``memory`` maps where such a tensor lies and its size to the same name, for views of all of it.
    ``parts`` are the names and shapes of the current node's values, where it gives several.
    """

    rows: int
    opset: int = 20
    reserved: frozenset[str] = frozenset()
    names: dict[int, str] = field(default_factory=dict)
    results: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: "list[NodeProto]" = field(default_factory=list)
    weights: "dict[str, TensorProto]" = field(default_factory=dict)
    current: str = ""
    module: str = ""
    parts: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    memory: "dict[tuple[int, int], str]" = field(default_factory=dict)
    _taken: set[str] = field(init=False)
    _stored: "dict[tuple[str, tuple[int, ...], tuple[int, ...]], str]" = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._taken = {*self.reserved, *self.names.values()}

    def emit(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append the node that gives the current fx node's value; its output takes the fx node's name."""
        return self._append(operator, inputs, [self._free(self.current)], attributes)

    def step(
        self, what: str, operator: str, inputs: Sequence[str], shape: tuple[int, ...] | None = None, **attributes: Any
    ) -> str:
        """Append a node on the way to it, called ``node/what``.

        ``shape`` is its first input's unless it is given; () leaves it unsaid.
        """
        output = self._append(operator, inputs, [self._free(f"{self.current}/{what}")], attributes)
        if shape != ():
            self.shapes[output] = self.shapes[inputs[0]] if shape is None else shape
        return output

    def emit_parts(self, operator: str, inputs: Sequence[str], **attributes: Any) -> tuple[str, ...]:
        """Append a node with as many outputs as the current fx node has values."""
        outputs = [self._free(name) for name, _ in self.parts]
        self._append(operator, inputs, outputs, attributes)
        self.shapes.update(zip(outputs, (shape for _, shape in self.parts), strict=True))
        return tuple(outputs)

    def _append(self, operator: str, inputs: Sequence[str], outputs: list[str], attributes: dict[str, Any]) -> str:
        from onnx import helper

        node = helper.make_node(operator, list(inputs), outputs, name=f"node_{outputs[0]}", **attributes)
        if self.module:
            node.metadata_props.add(key=MODULE_KEY, value=self.module)
        self.nodes.append(node)
        return outputs[0]

    def weight(self, name: str, tensor: "torch.Tensor | np.ndarray[Any, Any]") -> str:
        """Store a constant, the module's own once and under its PyTorch name; return the name.

        A view of all of one of the module's own tensors, such as its transpose, is named after that too.
        """
        from onnx import numpy_helper

        if isinstance(tensor, np.ndarray):
            return self._store(numpy_helper.from_array(tensor, self._free(name)))
        own = self.names.get(id(tensor)) or self.memory.get((tensor.data_ptr(), tensor.numel()))
        if own is None:
            return self._store(numpy_helper.from_array(_array(tensor), self._free(name)))
        key = (own, tuple(tensor.shape), tensor.stride())
        if key not in self._stored:
            free = self._free(own) if own in self.reserved or own in self.weights else own
            self._stored[key] = self._store(numpy_helper.from_array(_array(tensor), free))
        return self._stored[key]

    def _store(self, stored: "TensorProto") -> str:
        self.weights[stored.name] = stored
        return str(stored.name)

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Store a list of int64 under the current node's name and a suffix."""
        return self.weight(f"{self.current}/{name}", np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        """Store a float32 number under the current node's name and a suffix."""
        return self.weight(f"{self.current}/{name}", np.array(value, np.float32))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a value's shape at ``rows`` rows."""
        return self.shapes[name]

    @property
    def result(self) -> tuple[int, ...]:
        """The shape that PyTorch gave the current node."""
        return self.results[self.current]


def _array(tensor: "torch.Tensor") -> "np.ndarray[Any, Any]":
    array: np.ndarray[Any, Any] = tensor.detach().contiguous().numpy()
    return array


def finish(
    emitter: Emitter, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, str], batch: Batch, opset: int
) -> "ModelProto":
    """Assemble the model.

    Args:
        emitter: with every node emitted.
        inputs: name → shape at ``rows`` rows, in order.
        outputs: name → the value that is it, in order.
        batch: fixed where min and max are equal, else the axis ``batch``.
        opset: ONNX operator set.
    """
    from onnx import TensorProto, helper

    axis: int | str = batch.max if batch.min == batch.max else "batch"
    tidy(emitter, outputs.values())
    _rename_outputs(emitter, inputs, outputs)

    def info(name: str, shape: tuple[int, ...]) -> "ValueInfoProto":
        free = [axis, *shape[1:]] if shape and shape[0] == emitter.rows else list(shape)
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, free)

    made = [name for node in emitter.nodes for name in node.output if name not in outputs]
    graph = helper.make_graph(
        emitter.nodes,
        "graph",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, emitter.shapes[value]) for name, value in outputs.items()],
        value_info=[info(name, emitter.shapes[name]) for name in made if name in emitter.shapes],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports), producer_name="engineworks"
    )
    for name in list(emitter.weights):  # moved one by one: memory holds each of them once
        model.graph.initializer.append(emitter.weights.pop(name))
    return model


def _rename_outputs(emitter: Emitter, inputs: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
    """Give the values that are outputs their names; a value that is an input or two outputs goes through Identity."""
    from onnx import helper

    names: dict[str, str] = {}
    for output, value in outputs.items():
        if value in inputs or value in names or value in emitter.weights:
            emitter.nodes.append(
                helper.make_node("Identity", [names.get(value, value)], [output], name=f"node_{output}")
            )
        else:
            names[value] = output
    for node in emitter.nodes:
        for places in (node.input, node.output):
            for index, name in enumerate(places):
                places[index] = names.get(name, name)
