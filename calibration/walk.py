"""Run a graph node by node on some images, as it is and as it is quantised so far, side by side.

Both values of a tensor live until its last reader has run, image batch by image batch, so that memory holds a few
tensors and not the network. ONNX Runtime computes each node; int8 is emulated in float32, as the Q/DQ graph is without
optimisation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from engineworks.calibration.graph import Array, Floats, Graph
from engineworks.calibration.placement import Placement

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Batches = Sequence[Mapping[str, Array]]
Values = list[Floats]


Level = Literal["none", "basic", "all"]


def session(model: "ModelProto", *, optimise: Level = "none") -> Any:
    """Open a graph in ONNX Runtime on the CPU; without optimisation it is the reference for Q/DQ graphs.

    ``basic`` folds constants and keeps Q and DQ apart; ``all`` fuses them into integer kernels, which saturate on CPUs
    without VNNI: for float graphs, and for measuring just that.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    levels = {"none": level.ORT_DISABLE_ALL, "basic": level.ORT_ENABLE_BASIC, "all": level.ORT_ENABLE_ALL}
    options.graph_optimization_level = levels[optimise]
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_all(model: "ModelProto", batches: Batches, *, optimise: Level = "none") -> Floats:
    """Return the graph's first output for all batches, row after row."""
    runner = session(model, optimise=optimise)
    names = [runner.get_outputs()[0].name]
    return np.concatenate([runner.run(names, dict(batch))[0] for batch in batches])


def fake(values: Floats, scale: float) -> Floats:
    """Round to the int8 grid of a scale and back, as QuantizeLinear and DequantizeLinear do."""
    steps = values / np.float32(scale)
    np.rint(steps, out=steps)
    np.clip(steps, -128, 127, out=steps)
    steps *= np.float32(scale)
    return steps


class Node:
    """One node of a graph, ready to run on the tensors that are not constant."""

    def __init__(self, graph: Graph, node: "NodeProto", replaced: Mapping[int, Array] | None = None) -> None:
        """Open the node; ``replaced`` gives other values for some of its inputs, by position."""
        from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

        alone = NodeProto()
        alone.CopyFrom(node)
        model = ModelProto(ir_version=graph.model.ir_version, opset_import=graph.model.opset_import)
        for position, values in (replaced or {}).items():
            name = f"replaced_{position}"
            while len(alone.input) <= position:
                alone.input.append("")
            alone.input[position] = name
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        for name in dict.fromkeys(name for name in alone.input if name and graph.is_constant(name)):
            constant = graph.constant(name)
            assert constant is not None
            model.graph.initializer.append(numpy_helper.from_array(constant, name))
        given = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [name for name in dict.fromkeys(alone.input) if name and name not in given]
        self.outputs = [name for name in alone.output if name]
        model.graph.name = "one"
        model.graph.node.append(alone)
        model.graph.output.extend(ValueInfoProto(name=name) for name in self.outputs)
        self._model = model
        self._session: Any = None

    def run(self, values: Mapping[str, Array]) -> list[Floats]:
        """Compute the node's outputs from its inputs, by name."""
        given = {name: values[name] for name in self.inputs}
        if self._session is None:
            self._session = self._open(given)
        found: list[Floats] = self._session.run(self.outputs, given)
        return found

    def _open(self, given: Mapping[str, Array]) -> Any:
        from onnx import helper

        for name, value in given.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self._model.graph.input.append(helper.make_tensor_value_info(name, kind, None))
        return session(self._model)


class Walk:
    """The two networks on their way: tensor → its values, batch by batch."""

    def __init__(self, graph: Graph, placement: Placement, scales: Mapping[str, float], batches: Batches) -> None:
        self.graph, self.placement, self.scales = graph, placement, scales
        self.plain: dict[str, Values] = {name: [_floats(batch[name]) for batch in batches] for name in graph.inputs}
        self.quantised: dict[str, Values] = {name: list(values) for name, values in self.plain.items()}
        self._grids: dict[str, Values] = {}
        self._left = {name: len(readers) for name, readers in graph.readers.items()}
        self._reads = {reader: tensor for tensor, readers in placement.activations.items() for reader in readers}
        self.batches = len(batches)

    def on_grid(self, tensor: str) -> Values:
        """Return a tensor's values in the quantised network, rounded to its grid; computed once."""
        if tensor not in self._grids:
            scale = self.scales[self.placement.scale_of[tensor]]
            self._grids[tensor] = [fake(values, scale) for values in self.quantised[tensor]]
        return self._grids[tensor]

    def run(self, layer: Callable[["NodeProto", "Walk"], None]) -> None:
        """Go through the graph; ``layer`` computes ``plain`` and ``quantised`` of each int8 layer's output itself."""
        layers = frozenset(self.placement.layers)
        for node in self.graph.nodes:
            if node.op_type == "Constant":
                continue
            if node.name in layers:
                layer(node, self)
            else:
                self._step(node)
            self._forget(node)

    def _step(self, node: "NodeProto") -> None:
        runner = Node(self.graph, node)
        last = [name for name in runner.inputs if self._left.get(name) == 1 and name not in self.graph.outputs]
        for values, quantised in ((self.plain, False), (self.quantised, True)):
            for name in runner.outputs:
                values[name] = []
            for index in range(self.batches):
                made = runner.run(self._inputs(node, runner, index, quantised))
                for name, value in zip(runner.outputs, made, strict=True):
                    values[name].append(value)
                for name in last:
                    values[name][index] = np.empty(0, np.float32)

    def _inputs(self, node: "NodeProto", runner: Node, index: int, quantised: bool) -> dict[str, Floats]:
        if not quantised:
            return {name: self.plain[name][index] for name in runner.inputs}
        found = {}
        for name in runner.inputs:
            on_grid = (node.name, list(node.input).index(name)) in self._reads
            found[name] = (self.on_grid(name) if on_grid else self.quantised[name])[index]
        return found

    def _forget(self, node: "NodeProto") -> None:
        for name in node.input:
            self._left[name] = self._left.get(name, 0) - 1
            if self._left[name] == 0 and name not in self.graph.outputs:
                for values in (self.plain, self.quantised, self._grids):
                    values.pop(name, None)


def _floats(values: Array) -> Floats:
    return np.ascontiguousarray(values, np.float32)
