"""Our own way out of PyTorch: a symbolic trace of a module made of standard layers, written as ONNX in one pass.

The stock converter takes seconds and this takes hundredths; what it does not know for certain it refuses, and the
stock route takes over. What is refused, and why: hooks, a replaced ``forward`` and parametrisations (a trace looks past
them), training mode, tensors made inside ``forward`` (a trace freezes them, random ones too), in-place writes to a
value that has other readers, control flow on values or on the batch, a view with a fixed batch, every operator and
argument without a rule. The answers are held against the module's own afterwards, at every batch size.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engineworks.export.emitter import CannotTranslate, Emitter, finish
from engineworks.export.fold import copy_module, fold_batch_norm
from engineworks.export.operators import BATCH, function_rules, module_rules
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import fx

_WRITES = {"add_", "mul_", "relu_", "iadd", "imul"}
_VIEWS = {
    "Flatten",
    "Identity",
    "Dropout",
    "Dropout2d",
    "flatten",
    "view",
    "reshape",
    "contiguous",
    "dropout",
    "unsqueeze",
    "permute",
}


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

    _check_plain(module)
    if any(tensor.dtype != torch.float32 for tensor in inputs.values()):
        raise CannotTranslate("an input that is not float32")
    traced = _trace(fold_batch_norm(module))
    with torch.no_grad():
        values = _record(traced, list(inputs.values()))
    held = (*traced.named_parameters(), *traced.named_buffers())
    emitter = Emitter(
        rows=len(next(iter(inputs.values()))),
        reserved=frozenset((*inputs, *outputs)),
        shapes=_shapes(values),
        names={id(tensor): name for name, tensor in held},
    )
    results = _emit_all(traced, emitter, values, inputs)
    if len(results) != len(outputs):
        raise CannotTranslate(f"{len(results)} outputs where {len(outputs)} were named")
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    return finish(emitter, shapes, dict(zip(outputs, results, strict=True)), batch, opset), traced


def _check_plain(module: "torch.nn.Module") -> None:
    """Refuse what a symbolic trace would look past."""
    from torch import nn
    from torch.nn.modules import module as globals_of
    from torch.nn.utils import parametrize

    if globals_of._global_forward_hooks or globals_of._global_forward_pre_hooks:
        raise CannotTranslate("global forward hooks")
    for name, child in module.named_modules():
        where = name or "the module itself"
        if child.training:
            raise CannotTranslate(f"training mode in {where}")
        if child._forward_hooks or child._forward_pre_hooks:
            raise CannotTranslate(f"a forward hook on {where}")
        if "forward" in vars(child) or type(child).__call__ is not nn.Module.__call__:
            raise CannotTranslate(f"a replaced forward in {where}")
        if parametrize.is_parametrized(child):
            raise CannotTranslate(f"a parametrisation in {where}")


def _trace(module: "torch.nn.Module") -> "fx.GraphModule":
    from torch import fx

    held = {
        name
        for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    }
    try:
        root, tracer = copy_module(module, module.parameters()), fx.Tracer()  # forward may write on its buffers
        written = _versions(root)
        graph = tracer.trace(root)
    except Exception as error:  # whatever the module's own forward raises when it is run on proxies
        raise CannotTranslate(f"control flow that a trace cannot follow ({str(error).splitlines()[0][:80]})") from error
    if _versions(root) != written:
        raise CannotTranslate("a write to the module's own tensors")
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in held:
            raise CannotTranslate(f"a tensor made inside forward ({node.name})")
        if node.op == "placeholder" and (node.args or str(node.target).startswith("*")):
            raise CannotTranslate(f"an optional argument of forward ({node.name})")
    return fx.GraphModule(tracer.root, graph)


def _versions(module: "torch.nn.Module") -> list[int]:
    """Count how often each tensor was written to."""
    return [tensor._version for tensor in (*module.parameters(), *module.buffers())]


def _record(traced: "fx.GraphModule", examples: "list[torch.Tensor]") -> "dict[fx.Node, Any]":
    """Run the trace once and keep what every node gave."""
    from torch import fx

    kept: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            kept[n] = super().run_node(n)
            return kept[n]

    try:
        Recorder(traced).run(*[example.clone() for example in examples])
    except Exception as error:  # the module's own, or of a trace with other inputs than were given
        raise CannotTranslate(f"a trace that does not run ({str(error).splitlines()[0][:80]})") from error
    return kept


def _shapes(values: "Mapping[fx.Node, Any]") -> dict[str, tuple[int, ...]]:
    import torch

    return {node.name: tuple(value.shape) for node, value in values.items() if isinstance(value, torch.Tensor)}


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
            return [_checked_output(result, emitter) for result in results]
        elif all(_constant(known[source]) for source in node.all_input_nodes):
            known[node] = _checked_constant(node, values)
        else:
            known[node] = rules.apply(node, known)
    raise CannotTranslate("a trace without output")


def _constant(value: Any) -> bool:
    """Tell what does not depend on the input: a number, or a tensor made from weights alone."""
    if isinstance(value, (tuple, list)):
        return all(_constant(part) for part in value)
    return not isinstance(value, str) and value is not BATCH


def _checked_constant(node: "fx.Node", values: "Mapping[fx.Node, Any]") -> Any:
    """Return what is made of weights alone, unless it is made by writing on them."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.op.startswith("call") and (name.rstrip("_") != name or name in {"setitem", *_WRITES}):
        raise CannotTranslate(f"a write to the module's own tensors ({node.name})")
    return values[node]


def _checked_output(result: Any, emitter: Emitter) -> str:
    if not isinstance(result, str) or emitter.shapes[result][0] != emitter.rows:
        raise CannotTranslate("an output that is no tensor, has no batch axis, or does not depend on the input")
    return result


def _module_of(node: "fx.Node") -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack), "")) if stack else ""


class _Rules:
    """Applies the operator rules to the nodes of one trace."""

    def __init__(self, traced: "fx.GraphModule", emitter: Emitter, values: "Mapping[fx.Node, Any]") -> None:
        self._traced, self._emitter, self._values = traced, emitter, values
        self._modules, self._functions = module_rules(), function_rules()

    def apply(self, node: "fx.Node", known: "Mapping[fx.Node, Any]") -> Any:
        """Emit one node; return its value's name, or what else it stands for."""
        from torch.fx.node import map_arg

        self._check_writes(node)
        args, kwargs = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
        try:
            if node.op == "call_module":
                return self._keep_shape(node, self._apply_module(node, args))
            rule = self._functions.get(node.target)
            if rule is None:
                raise CannotTranslate(f"the operator {getattr(node.target, '__name__', node.target)}")
            return self._keep_shape(node, rule(self._emitter, *args, **kwargs))
        except (TypeError, LookupError) as error:
            raise CannotTranslate(f"arguments of {node.name} without a rule ({error})") from error

    def _apply_module(self, node: "fx.Node", args: tuple[Any, ...]) -> Any:
        module = self._traced.get_submodule(str(node.target))
        reader = self._modules.get(type(module))
        if reader is None or len(args) != 1:
            raise CannotTranslate(f"a {type(module).__name__} at {node.target}")
        rule, rest = reader(module)
        return rule(self._emitter, args[0], *rest)

    def _keep_shape(self, node: "fx.Node", result: Any) -> Any:
        if isinstance(result, str) and result not in self._emitter.shapes:
            self._emitter.shapes[result] = tuple(self._values[node].shape)
        return result

    def _check_writes(self, node: "fx.Node") -> None:
        """Refuse an in-place write to a value that anything else reads."""
        if not _writes(node, self._traced):
            return
        source: Any = node.args[0]
        while True:
            if not hasattr(source, "users") or len(source.users) != 1 or source.op in {"placeholder", "get_attr"}:
                raise CannotTranslate(f"an in-place write at {node.name} to a value with other readers")
            if _kind(source, self._traced) not in _VIEWS:
                return
            source = source.args[0]


def _writes(node: "fx.Node", traced: "fx.GraphModule") -> bool:
    if node.kwargs.get("inplace") or _kind(node, traced) in _WRITES:
        return True
    return node.op == "call_module" and bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))


def _kind(node: "fx.Node", traced: "fx.GraphModule") -> str:
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))
