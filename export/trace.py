"""A symbolic trace that can be trusted: taken of a copy, checked for all that a trace looks past, asked for its answer.

A trace sees one call of ``forward``, on stand-ins for tensors. What it cannot see is refused here: hooks, replaced
methods, random numbers, state that changes from call to call, writes that another reader would see, and paths that the
module takes only when it is given real tensors.
"""

import contextlib
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.export.emitter import CannotTranslate
from engineworks.export.fold import copy_module, fold_batch_norm
from engineworks.runtime.compare import sqnr

if TYPE_CHECKING:
    import torch
    from torch import fx

_AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
_VIEWS = {"Flatten", "Identity", "Dropout", "Dropout2d", "flatten", "view", "reshape", "contiguous", "dropout"} | {
    "unsqueeze", "permute",
}  # fmt: skip
_KNOWN = {"torch", "_operator", "builtins", "math"}  # whose functions may be run on weights
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


def trace(module: "torch.nn.Module") -> "fx.GraphModule":
    """Trace a copy whose batch norms are folded."""
    import torch
    from torch import fx

    try:
        with torch.no_grad(), no_random_numbers():
            folded = fold_batch_norm(module)
            root, tracer = copy_module(folded, folded.parameters()), _tracer()  # forward may write on its buffers
            state = _state(root)
            graph = tracer.trace(root)
    except CannotTranslate:
        raise
    except Exception as error:  # whatever the module's own forward raises when it is run on proxies
        raise CannotTranslate(f"a forward that a trace cannot follow ({first_line(error)})") from error
    held = *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)
    made = {node.target for node in graph.nodes if node.op == "get_attr"} - {name for name, _ in held}
    if made:
        raise CannotTranslate(f"a tensor made inside forward ({min(map(str, made))})")
    if _state(root) != state:
        raise CannotTranslate("a forward that changes the module: a write to the module's own tensors or attributes")
    for node in graph.nodes:
        if node.op == "placeholder" and (node.args or str(node.target).startswith("*")):
            raise CannotTranslate(f"an optional argument of forward ({node.name})")
    return fx.GraphModule(tracer.root, graph)


def _tracer() -> "fx.Tracer":
    """Make a tracer that sees the write in ``x += y``, which torch's own takes for ``x = x + y``."""
    from torch import fx

    class Proxy(fx.Proxy):
        pass

    class Tracer(fx.Tracer):
        def proxy(self, node: fx.Node) -> fx.Proxy:
            return Proxy(node, self)

    def method(write: Any) -> Callable[[fx.Proxy, Any], fx.Proxy]:
        return lambda self, other: self.tracer.create_proxy("call_function", write, (self, other), {})

    for name in _AUGMENTED:
        setattr(Proxy, f"__{name}__", method(getattr(operator, name)))
    return Tracer()


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
        content = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()  # .data writes count no version
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


def record(traced: "fx.GraphModule", examples: "list[torch.Tensor]") -> "dict[fx.Node, Any]":
    """Run the trace once and keep what every node gave."""
    from torch import fx

    kept: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            kept[n] = super().run_node(n)
            return kept[n]

    if len(examples) != sum(node.op == "placeholder" for node in traced.graph.nodes):
        raise CannotTranslate(f"a forward that does not take {len(examples)} inputs")
    try:
        Recorder(traced).run(*[example.clone() for example in examples])
    except Exception as error:  # the module's own, or of a trace with other inputs than were given
        raise CannotTranslate(f"a trace that does not run ({first_line(error)})") from error
    return kept


def ask(
    module: "torch.nn.Module", inputs: "Mapping[str, torch.Tensor]", values: "dict[fx.Node, Any]", rows: int
) -> None:
    """Hold the trace against the module itself, on the first rows of the example."""
    import torch
    from torch.utils._pytree import tree_leaves

    try:
        with torch.no_grad():
            result = copy_module(module, module.parameters())(*(tensor[:rows].clone() for tensor in inputs.values()))
    except Exception as error:  # the module's own
        raise CannotTranslate(f"a module that does not run ({first_line(error)})") from error
    right, traced = tree_leaves(result), [answer[:rows] for answer in tree_leaves(values[next(reversed(values))])]
    if len(right) != len(traced) or not all(map(_same, right, traced)):
        raise CannotTranslate("a forward that answers otherwise when it is traced, or among other rows")


def _same(right: Any, traced: "torch.Tensor") -> bool:
    import torch

    if not isinstance(right, torch.Tensor) or (right.dtype, right.shape) != (traced.dtype, traced.shape):
        return False
    return sqnr(right.detach().numpy(), traced.detach().numpy()) > _SAME_DB


def first_line(error: Exception) -> str:
    """Return an error's first line, cut to one that can be read."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:80]


def check_writes(traced: "fx.GraphModule") -> None:
    """Refuse writes to the module's own tensors and to values with other readers, and functions of unknown make."""
    fixed: set[fx.Node] = set()  # what is made of weights alone
    for node in traced.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or (node.op.startswith("call") and fixed.issuperset(sources)):
            fixed.add(node)
        if node.op == "call_function" and (node.target.__module__ or "torch").split(".")[0] not in _KNOWN:
            raise CannotTranslate(f"the function {node.target.__name__}")
        if node in fixed and "empty" in _kind(node, traced):
            raise CannotTranslate(f"a tensor that is not initialised ({node.name})")
        if not _writes(node, traced):
            continue
        if fixed.intersection((node, *sources[:1])) or "out" in node.kwargs:
            raise CannotTranslate(f"a write to the module's own tensors ({node.name})")
        if not _alone(node, traced):
            raise CannotTranslate(f"an in-place write at {node.name} to a value with other readers")


def _writes(node: "fx.Node", traced: "fx.GraphModule") -> bool:
    if not node.op.startswith("call"):
        return False
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    name = _kind(node, traced)
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    return name in {*_AUGMENTED, "setitem", "__setitem__"} or (name.endswith("_") and not name.endswith("__"))


def _alone(node: "fx.Node", traced: "fx.GraphModule") -> bool:
    """Tell whether an in-place operator is the only reader of what it writes to, and of what that is a view of."""
    source: Any = node.args[0] if node.args else None
    while True:
        if not hasattr(source, "users") or len(source.users) != 1 or source.op in {"placeholder", "get_attr"}:
            return False
        if _kind(source, traced) not in _VIEWS:
            return True
        source = source.args[0] if source.args else None


def _kind(node: "fx.Node", traced: "fx.GraphModule") -> str:
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))
