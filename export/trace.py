"""A symbolic trace that can be trusted: taken of a copy, checked for all that a trace looks past, asked for its answer.

A trace sees one call of ``forward``, on stand-ins for tensors. What it cannot see is refused here: hooks, replaced
methods, random numbers, state that changes from call to call, writes that another reader would see, and paths that the
module takes only when it is given real tensors.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.export.emitter import CannotTranslate
from engineworks.export.fold import copy_module
from engineworks.runtime.compare import sqnr

if TYPE_CHECKING:
    import torch
    from torch import fx

STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.stochastic_depth"  # the one function kept whole by its maker
_AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
_KNOWN = {"torch", "_operator", "builtins", "math", STOCHASTIC_DEPTH}  # whose functions may be run on weights
_SAME_DB = 90.0  # 15 bits: above what folding a batch norm costs in float32, below bfloat16, TF32 and other paths


def check_plain(module: "torch.nn.Module") -> None:
    """Refuse what a symbolic trace would look past."""
    from torch import Tensor, nn, strided
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
        methods = vars(child) if type(child).__module__.startswith("torch.nn.") else {"forward"} & vars(child).keys()
        replaced = any(callable(getattr(type(child), name, None)) for name in methods)
        if replaced or type(child).__call__ is not nn.Module.__call__:
            raise CannotTranslate(f"a replaced forward in {where}")
        if parametrize.is_parametrized(child):
            raise CannotTranslate(f"a parametrisation in {where}")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if type(tensor) not in {Tensor, nn.Parameter} or tensor.layout != strided or tensor.device.type != "cpu":
            raise CannotTranslate(f"a tensor that is not a plain one on the CPU ({name})")


def check_inputs(inputs: "Mapping[str, torch.Tensor]", outputs: tuple[str, ...]) -> None:
    """Refuse what is no float32 with a batch axis, and names that would meet in the graph."""
    import torch

    if any(tensor.dtype != torch.float32 for tensor in inputs.values()):
        raise CannotTranslate("an input that is not float32")
    rows = {tuple(tensor.shape[:1]) for tensor in inputs.values()}
    if len(rows) != 1 or () in rows:
        raise CannotTranslate("inputs that do not share a batch axis")
    if len({*inputs, *outputs}) != len(inputs) + len(outputs):
        raise CannotTranslate("a name that two inputs or outputs share")


@contextlib.contextmanager
def no_random_numbers() -> Iterator[None]:
    """Refuse what draws from the global generators of PyTorch, NumPy or Python while this is active."""
    import torch

    def state() -> list[Any]:
        numpys = _described(np.random.get_state(legacy=False))
        return [_generator_state(torch.default_generator), random.getstate(), numpys]

    before = state()
    yield
    if state() != before:
        raise CannotTranslate("random numbers drawn in forward")


@dataclass
class Traced:
    """A trace, and what each of its nodes gave when it was taken (``tracer.RunningTracer``).

    ``module`` is the trace, on weights of its own; ``original`` the copy that it was taken of. Of what depends on the
    input only shapes and types are kept.
    """

    module: "fx.GraphModule"
    original: "torch.nn.Module"
    values: "dict[fx.Node, Any]"
    fixed: "set[fx.Node]"
    writing: "set[fx.Node]"
    result: Any


def trace(module: "torch.nn.Module", examples: "list[torch.Tensor]", leaves: frozenset[type]) -> Traced:
    """Trace a copy, weights and all, so that nothing that ``forward`` does can reach the module itself."""
    from torch import fx

    from engineworks.export.tracer import RunningTracer

    try:
        with no_random_numbers():
            root, tracer = copy_module(module, ()), RunningTracer(examples, leaves)
            held = {name for name, _ in (*root.named_parameters(), *root.named_buffers())}
            state = _state(root)
            graph = tracer.follow(root)
    except CannotTranslate:
        raise
    except Exception as error:  # whatever the module's own forward raises when it is run on proxies
        raise CannotTranslate(f"a forward that a trace cannot follow ({first_line(error)})") from error
    if tracer.gave_up:
        raise CannotTranslate(f"a forward that catches a refusal ({tracer.gave_up})")
    made = {str(node.target) for node in graph.nodes if node.op == "get_attr"} - held
    if made:
        raise CannotTranslate(f"a tensor made inside forward ({min(made)})")
    traced = Traced(fx.GraphModule(root, graph), root, tracer.values, tracer.fixed, tracer.writing, tracer.result)
    check_writes(traced)
    traced.module.recompile()
    traced.values = {node: _slim(value) if node not in traced.fixed else value for node, value in traced.values.items()}
    if _state(root) != state:
        raise CannotTranslate("a forward that changes the module: a write to the module's own tensors or attributes")
    return traced


def _slim(value: Any) -> Any:
    """Keep of a tensor its shape and type: its numbers are as large as the network's activations."""
    import torch

    if isinstance(value, (tuple, list)):
        return tuple(_slim(part) for part in value)
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _state(module: "torch.nn.Module") -> list[Any]:
    """Describe all that a module and its children hold, so that a change shows."""
    return [_described(vars(child)) for child in module.modules()]


def _described(value: Any) -> Any:
    """Return what compares equal as long as the value is the same; objects by identity, kept alive for that."""
    import torch

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, dict):
        return [(key, _described(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_described(part) for part in value]
    if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
        content = _bytes(value).numpy().tobytes()  # .data writes count no version
        return id(value), content, value._version, value
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return _generator_state(value) or (id(value), getattr(value, "_version", 0), value)


def _generator_state(value: Any) -> Any:
    """Return where a generator of random numbers stands; None for anything else."""
    import torch

    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    return value.get_state().numpy().tobytes() if isinstance(value, torch.Generator) else None


def ask(traced: Traced, inputs: "Mapping[str, torch.Tensor]", rows: int) -> None:
    """Hold the trace against the module that it was taken of, on the first rows of the example."""
    from torch.utils._pytree import tree_leaves

    try:
        result = traced.original(*(tensor[:rows].clone() for tensor in inputs.values()))
    except Exception as error:  # the module's own
        raise CannotTranslate(f"a module that does not run ({first_line(error)})") from error
    right, answers = tree_leaves(result), tree_leaves(traced.result)
    if len(right) != len(answers) or not all(
        _same(one, other, rows) for one, other in zip(right, answers, strict=True)
    ):
        raise CannotTranslate("a forward that answers otherwise when it is traced, or among other rows")


def share(traced: Traced, module: "torch.nn.Module") -> None:
    """Let the copies have the module's own tensors again, which are as large; both runs have left them as they were.

    Raises:
        CannotTranslate: they have not.
    """
    import torch

    tensors = (*module.named_parameters(), *module.named_buffers())
    copies = dict((*traced.original.named_parameters(), *traced.original.named_buffers()))
    for name, tensor in tensors:
        copied = copies[name]
        if not torch.equal(copied, tensor) and not torch.equal(_bytes(copied), _bytes(tensor)):  # not a number is none
            raise CannotTranslate(f"a forward that changes the module: a write to {name}")
        copied.data = tensor.data


def _bytes(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8)


def _same(right: Any, traced: Any, rows: int) -> bool:
    """Compare an answer with the first rows of the trace's; what is no tensor is refused elsewhere."""
    import torch

    if not isinstance(right, torch.Tensor) or not isinstance(traced, torch.Tensor):
        return type(right) is type(traced)
    first = traced if traced.shape == right.shape else traced[:rows]  # what has no batch is refused elsewhere
    if (right.dtype, right.shape) != (first.dtype, first.shape):
        return False
    return sqnr(right.detach().double().numpy(), first.detach().double().numpy()) > _SAME_DB


def first_line(error: Exception) -> str:
    """Return an error's first line, cut to one that can be read."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:80]


def check_writes(traced: Traced) -> None:
    """Let who reads a value after a write read what was written; refuse writes that reach further, and odd functions.

    Further: to the module's own tensors, to the input, to memory of which there are views.
    """
    memory = _Memory(traced)
    for node in traced.module.graph.nodes:
        if node.op == "call_function" and not _is_known(node.target):
            raise CannotTranslate(f"the function {node.target.__name__}")
        if node in traced.fixed and "empty" in _kind(node, traced.module):
            raise CannotTranslate(f"a tensor that is not initialised ({node.name})")
        if node not in traced.writing and not _writes(node, traced.module):
            continue
        if traced.fixed.intersection((node, *node.all_input_nodes[:1])) or node.kwargs.get("out") is not None:
            raise CannotTranslate(f"a write to the module's own tensors ({node.name})")
        if memory.is_read_elsewhere(node):
            raise CannotTranslate(f"an in-place write at {node.name} to a value with other readers")


def _is_known(function: Any) -> bool:
    home = function.__module__ or "torch"
    return home.split(".")[0] in _KNOWN or f"{home}.{function.__name__}" in _KNOWN


def _writes(node: "fx.Node", traced: "fx.GraphModule") -> bool:
    """Tell by its name what writes in place: ``.data`` counts no versions."""
    if not node.op.startswith("call"):
        return False
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    name = _kind(node, traced)
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    return name in {*_AUGMENTED, "setitem", "__setitem__"} or (name.endswith("_") and not name.endswith("__"))


class _Memory:
    """Knows which values lie in the same memory, and when each is read."""

    def __init__(self, traced: Traced) -> None:
        self._values, self._sharing = traced.values, dict[int, list["fx.Node"]]()
        self._position = {node: index for index, node in enumerate(traced.module.graph.nodes)}
        for node in self._position:
            for place in _memory(self._values.get(node)):
                self._sharing.setdefault(place, []).append(node)

    def is_read_elsewhere(self, writer: "fx.Node") -> bool:
        """Tell whether a value from before the write, in memory written to, is the input's or is read afterwards.

        What is read afterwards and is the very tensor that the writer returns is read from the writer instead.
        """
        now = self._position[writer]
        places = _memory(self._values[writer]).union(*(_memory(self._values[n]) for n in writer.all_input_nodes[:1]))
        for other in [node for place in places for node in self._sharing[place] if self._position[node] < now]:
            if other.op in {"placeholder", "get_attr"}:
                return True
            later = [user for user in other.users if self._position[user] > now]
            if later and self._values[other] is not self._values[writer]:
                return True
            for user in later:
                user.replace_input_with(other, writer)
        return False


def _memory(value: Any) -> set[int]:
    """Return where a value's tensors lie: views share one place."""
    import torch

    if isinstance(value, (tuple, list)):
        return {place for part in value for place in _memory(part)}
    return {value.untyped_storage().data_ptr()} if isinstance(value, torch.Tensor) and value.numel() else set()


def _kind(node: "fx.Node", traced: "fx.GraphModule") -> str:
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))
