"""An ONNX graph being written, operator by operator, with the shapes that PyTorch itself gave each value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.export.clean import MODULE_KEY
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
    and outputs. What is stored for a node is called ``node/what``. A name that is taken gets underscores.
    """

    rows: int
    reserved: frozenset[str] = frozenset()
    names: dict[int, str] = field(default_factory=dict)
    results: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: "list[NodeProto]" = field(default_factory=list)
    weights: "dict[str, TensorProto]" = field(default_factory=dict)
    current: str = ""
    module: str = ""
    _taken: set[str] = field(init=False)
    _stored: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._taken = {*self.reserved, *self.names.values()}

    def emit(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append one node; its output takes the fx node's name."""
        from onnx import helper

        output = self._free(self.current)
        node = helper.make_node(operator, list(inputs), [output], name=f"node_{output}", **attributes)
        if self.module:
            node.metadata_props.add(key=MODULE_KEY, value=self.module)
        self.nodes.append(node)
        return output

    def weight(self, name: str, tensor: "torch.Tensor | np.ndarray[Any, Any]") -> str:
        """Store a constant, the module's own once and under its PyTorch name; return the name."""
        from onnx import numpy_helper

        if id(tensor) in self._stored:
            return self._stored[id(tensor)]
        own = self.names.get(id(tensor))
        name = self._free(own or name) if own is None or own in self.reserved else own
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().contiguous().numpy()
        self.weights[name] = numpy_helper.from_array(array, name)
        if own is not None:
            self._stored[id(tensor)] = name
        return name

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
