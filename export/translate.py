"""Our own way out of PyTorch: a symbolic trace of a module made of standard layers, written as ONNX in one pass.

The stock converter takes seconds and this takes hundredths; what it does not know for certain it refuses, and the
stock route takes over. ``trace`` refuses what a trace looks past; here a view with a fixed batch, a constant that meets
the batch axis, and every operator and argument without a rule are refused. The graph's answers are held against the
module's own afterwards, at every batch size.
"""

import copy
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from engineworks.export.emitter import CannotTranslate, Emitter, finish
from engineworks.export.fold_trace import fold_batch_norms
from engineworks.export.operands import BATCH, Rule
from engineworks.export.operators import function_rules, module_rules
from engineworks.export.trace import Traced, ask, check_inputs, check_plain, first_line, no_random_numbers, share, trace
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import fx


class Translation(NamedTuple):
    """A float32 graph and the trace that it was written from, whose node names its values have.

    ``before`` is the trace's graph as it was before batch norms were folded: it runs on the module itself. ``folded``
    leads from each layer that took one in to that norm's node.
    """

    graph: "ModelProto"
    traced: "fx.GraphModule"
    before: "fx.Graph"
    folded: dict[str, str]


def translate(
    module: "torch.nn.Module",
    inputs: "Mapping[str, torch.Tensor]",
    outputs: tuple[str, ...],
    *,
    batch: Batch,
    opset: int,
) -> Translation:
    """Write a module as a float32 ONNX graph.

    Args:
        module: float32, on the CPU, in eval mode throughout.
        inputs: name → example; axis 0 is the batch.
        outputs: names for the outputs, in the order in which ``forward`` returns them.
        batch: fixed where min and max are equal, else free.
        opset: ONNX operator set, 18 to 23.

    Raises:
        CannotTranslate: something that this route is not certain of.
    """
    import torch

    check_plain(module)
    check_inputs(inputs, outputs)
    with torch.no_grad(), no_random_numbers():
        traced = trace(module, list(inputs.values()), frozenset(module_rules()))
        before = copy.deepcopy(traced.module.graph)
        folded = fold_batch_norms(traced.module, traced.values)
        emitter = _begin(traced, inputs, outputs, opset)
        results = _emit_all(traced, emitter, inputs)
        if len(results) != len(outputs) or not outputs:
            raise CannotTranslate(f"{len(results)} outputs where {len(outputs)} were named")
        ask(traced, inputs, batch.min)
        share(traced, module)
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    graph = finish(emitter, shapes, dict(zip(outputs, results, strict=True)), batch, opset)
    return Translation(graph, traced.module, before, folded)


def _begin(traced: Traced, inputs: "Mapping[str, torch.Tensor]", outputs: tuple[str, ...], opset: int) -> Emitter:
    import torch

    held = [*traced.module.named_parameters(), *traced.module.named_buffers()]
    return Emitter(
        rows=len(next(iter(inputs.values()))),
        opset=opset,
        reserved=frozenset((*inputs, *outputs)),
        results={
            node.name: tuple(value.shape) for node, value in traced.values.items() if isinstance(value, torch.Tensor)
        },
        names={id(tensor): name for name, tensor in held},
        memory={(tensor.data_ptr(), tensor.numel()): name for name, tensor in reversed(held)},
    )


def _emit_all(traced: Traced, emitter: Emitter, inputs: "Mapping[str, torch.Tensor]") -> list[str]:
    """Emit every node; return the names of the values that are the outputs."""
    from torch.fx.node import map_arg
    from torch.utils._pytree import tree_leaves

    known: dict[fx.Node, Any] = {}
    names = iter(inputs)
    rules = _Rules(traced, emitter)
    for node in traced.module.graph.nodes:
        emitter.current, emitter.module = node.name, _module_of(node)
        if node.op == "placeholder":
            known[node] = next(names)
            emitter.shapes[known[node]] = tuple(traced.values[node].shape)
        elif node.op == "output":
            results = tree_leaves(map_arg(node.args[0], known.__getitem__))
            if not all(isinstance(result, str) for result in results):
                raise CannotTranslate("an output that is no tensor, has no batch axis, or does not depend on the input")
            return results
        elif node.op == "get_attr":  # after folding, which may have changed it
            known[node] = operator.attrgetter(str(node.target))(traced.module)
        elif all(_constant(known[source]) for source in node.all_input_nodes):
            known[node] = traced.values[node]
        else:
            known[node] = rules.apply(node, known)
    raise CannotTranslate("a trace without output")


def _constant(value: Any) -> bool:
    """Tell what does not depend on the input: a number, or a tensor made from weights alone."""
    if isinstance(value, (tuple, list)):
        return all(_constant(part) for part in value)
    return not isinstance(value, str) and value is not BATCH


def _module_of(node: "fx.Node") -> str:
    """Name the innermost module; the stack's keys count its calls, its values do not."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


class _Rules:
    """Applies the operator rules to the nodes of one trace."""

    def __init__(self, traced: Traced, emitter: Emitter) -> None:
        self._traced, self._emitter, self._values = traced.module, emitter, traced.values
        self._modules, self._functions = module_rules(), function_rules()

    def apply(self, node: "fx.Node", known: "Mapping[fx.Node, Any]") -> Any:
        """Emit one node; return its value's name, or what else it stands for."""
        from torch.fx.node import map_arg

        args, kwargs = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
        self._emitter.parts = self._parts(node)
        try:
            if node.op == "call_module":
                return self._checked(node, self._apply_module(node, args, kwargs))
            return self._checked(node, self._rule(node)(self._emitter, *args, **kwargs))
        except CannotTranslate:
            raise
        except Exception as error:  # a rule given what it was not written for
            raise CannotTranslate(f"arguments of {node.name} without a rule ({first_line(error)})") from error

    def _rule(self, node: "fx.Node") -> Rule:
        target: Any = node.target
        rule = self._functions.get(target) or self._functions.get(
            f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
        )
        if rule is None:
            raise CannotTranslate(f"the operator {getattr(target, '__name__', target)}")
        return rule

    def _apply_module(self, node: "fx.Node", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self._traced.get_submodule(str(node.target))
        if len(args) != 1 or kwargs:
            raise CannotTranslate(f"the layer {node.target}, a {type(module).__name__}, called with other than a value")
        rule, rest = self._modules[type(module)](module)
        return rule(self._emitter, args[0], *rest)

    def _parts(self, node: "fx.Node") -> list[tuple[str, tuple[int, ...]]]:
        """Name the several values of a node after the nodes that take them out."""
        values = self._values[node]
        if not isinstance(values, (tuple, list)) or not all(hasattr(value, "shape") for value in values):
            return []
        taken = {
            user.args[1] % len(values): user.name
            for user in reversed(node.users)
            if user.target is operator.getitem and isinstance(user.args[1], int)
        }
        names = [taken.get(index, f"{node.name}/{index}") for index in range(len(values))]
        return [(name, tuple(value.shape)) for name, value in zip(names, values, strict=True)]

    def _checked(self, node: "fx.Node", result: Any) -> Any:
        """Keep a value's shape; refuse what is not float32 rows of the batch."""
        value = self._values[node]
        if isinstance(result, str):
            self._keep(node, result, value)
        elif isinstance(result, tuple) and isinstance(value, (tuple, list)):
            for part, its in zip(result, value, strict=True):
                if isinstance(part, str):
                    self._keep(node, part, its)
        return result

    def _keep(self, node: "fx.Node", name: str, value: Any) -> None:
        import torch

        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or 0 in value.shape:
            raise CannotTranslate(f"a value that is not float32, or empty ({node.name})")
        if tuple(value.shape[:1]) != (self._emitter.rows,):
            raise CannotTranslate(f"a value that has no batch axis ({node.name})")
        self._emitter.shapes[name] = tuple(value.shape)
