"""Our own way out of PyTorch: a symbolic trace of a module made of standard layers, written as ONNX in one pass.

The stock converter takes seconds and this takes hundredths; what it does not know for certain it refuses, and the
stock route takes over. ``trace`` refuses what a trace looks past; here a view with a fixed batch, a constant that meets
the batch axis, and every operator and argument without a rule are refused. The graph's answers are held against the
module's own afterwards, at every batch size.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engineworks.export.emitter import CannotTranslate, Emitter, finish
from engineworks.export.operators import BATCH, function_rules, module_rules
from engineworks.export.trace import (
    ask,
    check_inputs,
    check_plain,
    check_writes,
    first_line,
    no_random_numbers,
    record,
    trace,
)
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import fx


def translate(
    module: "torch.nn.Module",
    inputs: "Mapping[str, torch.Tensor]",
    outputs: tuple[str, ...],
    *,
    batch: Batch,
    opset: int,
) -> "tuple[ModelProto, fx.GraphModule]":
    """Write a module as a float32 ONNX graph.

    Args:
        module: float32, on the CPU, in eval mode throughout.
        inputs: name → example; axis 0 is the batch.
        outputs: names for the outputs, in the order in which ``forward`` returns them.
        batch: fixed where min and max are equal, else free.
        opset: ONNX operator set, 18 to 23.

    Returns:
        The graph, and the trace that it was written from; value names are the trace's node names.

    Raises:
        CannotTranslate: something that this route is not certain of.
    """
    import torch

    check_plain(module)
    check_inputs(inputs, outputs)
    check_writes(traced := trace(module))
    with torch.no_grad(), no_random_numbers():
        values = record(traced, list(inputs.values()))
        emitter = Emitter(
            rows=len(next(iter(inputs.values()))),
            reserved=frozenset((*inputs, *outputs)),
            results={
                node.name: tuple(value.shape) for node, value in values.items() if isinstance(value, torch.Tensor)
            },
            names={id(tensor): name for name, tensor in (*traced.named_parameters(), *traced.named_buffers())},
        )
        results = _emit_all(traced, emitter, values, inputs)
    if len(results) != len(outputs) or not outputs:
        raise CannotTranslate(f"{len(results)} outputs where {len(outputs)} were named")
    ask(module, inputs, values, batch.min)
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    return finish(emitter, shapes, dict(zip(outputs, results, strict=True)), batch, opset), traced


def _emit_all(
    traced: "fx.GraphModule", emitter: Emitter, values: "Mapping[fx.Node, Any]", inputs: "Mapping[str, torch.Tensor]"
) -> list[str]:
    """Emit every node; return the names of the values that are the outputs."""
    from torch.fx.node import map_arg
    from torch.utils._pytree import tree_leaves

    known: dict[fx.Node, Any] = {}
    names = iter(inputs)
    rules = _Rules(traced, emitter, values)
    for node in traced.graph.nodes:
        emitter.current, emitter.module = node.name, _module_of(node)
        if node.op == "placeholder":
            known[node] = next(names)
            emitter.shapes[known[node]] = tuple(values[node].shape)
        elif node.op == "output":
            results = tree_leaves(map_arg(node.args[0], known.__getitem__))
            if not all(isinstance(result, str) for result in results):
                raise CannotTranslate("an output that is no tensor, has no batch axis, or does not depend on the input")
            return results
        elif all(_constant(known[source]) for source in node.all_input_nodes):
            known[node] = values[node]
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

    def __init__(self, traced: "fx.GraphModule", emitter: Emitter, values: "Mapping[fx.Node, Any]") -> None:
        self._traced, self._emitter, self._values = traced, emitter, values
        self._modules, self._functions = module_rules(), function_rules()

    def apply(self, node: "fx.Node", known: "Mapping[fx.Node, Any]") -> Any:
        """Emit one node; return its value's name, or what else it stands for."""
        from torch.fx.node import map_arg

        args, kwargs = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
        try:
            if node.op == "call_module":
                return self._checked(node, self._apply_module(node, args))
            rule = self._functions.get(node.target)
            if rule is None:
                raise CannotTranslate(f"the operator {getattr(node.target, '__name__', node.target)}")
            return self._checked(node, rule(self._emitter, *args, **kwargs))
        except CannotTranslate:
            raise
        except Exception as error:  # a rule given what it was not written for
            raise CannotTranslate(f"arguments of {node.name} without a rule ({first_line(error)})") from error

    def _apply_module(self, node: "fx.Node", args: tuple[Any, ...]) -> Any:
        module = self._traced.get_submodule(str(node.target))
        reader = self._modules.get(type(module))
        if reader is None or len(args) != 1 or type(module).forward.__module__ != type(module).__module__:
            raise CannotTranslate(f"the layer {node.target}, a {type(module).__name__}")
        rule, rest = reader(module)
        return rule(self._emitter, args[0], *rest)

    def _checked(self, node: "fx.Node", result: Any) -> Any:
        """Keep a value's shape; refuse what is not float32 rows of the batch."""
        import torch

        if not isinstance(result, str):
            return result
        value = self._values[node]
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or 0 in value.shape:
            raise CannotTranslate(f"a value that is not float32, or empty ({node.name})")
        if tuple(value.shape[:1]) != (self._emitter.rows,):
            raise CannotTranslate(f"a value that has no batch axis ({node.name})")
        self._emitter.shapes[result] = tuple(value.shape)
        return result
