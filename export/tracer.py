"""A symbolic trace that runs as it is taken: PyTorch's own tracer, with every node's value known as soon as the node.

So sizes are plain numbers, and a ``forward`` that computes its padding or chooses its way by them can be followed.
The one size that must not become a number is the batch: ``x.shape[0]`` stays a node of the trace, and whatever would
decide by it is refused by the tracer, as every decision by data is.
"""

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

from engineworks.export.emitter import CannotTranslate

_AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")


class RunningTracer(fx.Tracer):
    """Traces a module that may be spoiled: what its forward writes, it writes on this module.

    ``values`` maps each node to what it gave; ``fixed`` are the nodes made of the module's own tensors alone;
    ``writing`` are those that were seen to write on an argument; ``result`` is what ``forward`` returned; ``gave_up``
    says what was refused, for a ``forward`` may catch that and take another way.
    """

    def __init__(self, examples: list[torch.Tensor], leaves: frozenset[type]) -> None:
        super().__init__()
        self.values: dict[fx.Node, Any] = {}
        self.fixed: set[fx.Node] = set()
        self.writing: set[fx.Node] = set()
        self.result: Any = None
        self.gave_up = ""
        self._examples, self._rows = examples, len(examples[0])
        self._leaves = leaves
        self._names: dict[int, str] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self._batch: fx.Proxy | None = None
        self._runs = False

    def follow(self, module: nn.Module) -> fx.Graph:
        """Trace ``module`` on the examples."""
        held = (*module.named_parameters(), *module.named_buffers())
        self._names = {id(tensor): name for name, tensor in held}
        graph = self.trace(module)
        output = next(reversed(graph.nodes))
        self.result = map_arg(output.args[0], self._value)
        self._drop_unread_batch(graph)
        self._proxies.clear()  # they refer to this tracer; without the ring all of it goes with its last reader
        self._batch = None
        return graph

    def _drop_unread_batch(self, graph: fx.Graph) -> None:
        if self._batch is not None and not self._batch.node.users:
            shape = self._batch.node.all_input_nodes[0]
            graph.erase_node(self._batch.node)
            if not shape.users:
                graph.erase_node(shape)

    # --- what PyTorch's tracer asks for ---

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Give ``forward`` as many inputs as there are examples, by position; the rest keeps its defaults."""
        taken = [
            name for name, parameter in inspect.signature(root_fn).parameters.items()
            if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
        ][1 : len(self._examples) + 1]  # fmt: skip
        if len(taken) != len(self._examples):
            raise CannotTranslate(f"a forward that does not take {len(self._examples)} inputs")
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in taken)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep as one node what there is a rule for; follow the forward of all else, subclasses among it."""
        return type(m) in self._leaves and type(m).forward.__module__ == type(m).__module__

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call, unless it comes from a node that is being run."""
        return forward(*args, **kwargs) if self._runs else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Give parameters and buffers out as proxies, so that what is made of them is seen."""
        name = self._names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) and not self._runs else None
        if name is None:
            return attr_val
        if name not in self._proxies:
            self._proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self._proxies[name]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make a proxy that knows its value."""
        return _RunningProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:
        """Record a node and run it."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self._run(proxy.node)
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Refuse a decision by data or by the batch."""
        self.gave_up = f"a decision by the value of {obj.node.name}"
        return bool(super().to_bool(obj))

    # --- running ---

    def _run(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = self._examples[len(self.values)].clone()
            return
        if node.op == "get_attr" or self.fixed.issuperset(node.all_input_nodes):
            self.fixed.add(node)
        args, kwargs = map_arg(node.args, self._value), map_arg(node.kwargs, self._value)
        versions = [(tensor, tensor._version) for tensor in _tensors((args, kwargs))]
        self._runs = True
        try:
            self.values[node] = self._call(node, args, kwargs)
        finally:
            self._runs = False
        if any(tensor._version != version for tensor, version in versions):
            self.writing.add(node)

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if node.op == "get_attr":
            return operator.attrgetter(str(target))(self.root)
        if node.op == "call_function":
            return target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return self.root.get_submodule(str(target))(*args, **kwargs)

    def _value(self, node: fx.Node) -> Any:
        if node not in self.values:  # PyTorch's tracer makes nodes of its own for tensors that are no proxies
            self._run(node)
        return self.values[node]

    def sizes(self, proxy: fx.Proxy) -> Any:
        """Return a tensor's shape: numbers, but for the batch of what depends on the input.

        Raises:
            CannotTranslate: what depends on the input, and has no batch axis.
        """
        value = self.values[proxy.node]
        if proxy.node in self.fixed:
            return value.shape
        if tuple(value.shape[:1]) != (self._rows,):
            raise CannotTranslate(f"a value that has no batch axis ({proxy.node.name})")
        if self._batch is None:
            shape = self.create_proxy("call_function", getattr, (proxy, "shape"), {})
            self._batch = self.create_proxy("call_function", operator.getitem, (shape, 0), {})
        return (self._batch, *value.shape[1:])


def _tensors(values: Any) -> list[torch.Tensor]:
    """Collect the tensors among a node's arguments that count their versions."""
    found: list[torch.Tensor] = []

    def keep(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not value.is_inference():
            found.append(value)
        return value

    map_aggregate(values, keep)
    return found


class _RunningProxy(fx.Proxy):
    """A stand-in for a value; it answers at once what does not depend on the input's numbers or the batch."""

    tracer: RunningTracer

    @property
    def _now(self) -> Any:
        return self.tracer.values[self.node]

    def __getattr__(self, k: str) -> Any:
        if callable(getattr(self._now, k)):  # an AttributeError, where the value would raise one
            return super().__getattr__(k)
        if k in {"dtype", "device", "layout", "is_cuda", "requires_grad", "itemsize"}:
            return getattr(self._now, k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    @property
    def shape(self) -> Any:
        """The sizes, the batch left open."""
        if isinstance(self._now, torch.Tensor):
            return self.tracer.sizes(self)
        return self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})

    def size(self, dim: int | None = None) -> Any:
        """Return the sizes, or one of them, the batch left open."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return int(self._now.ndim)

    def dim(self) -> int:
        """Return how many axes there are."""
        return int(self._now.dim())

    def is_contiguous(self, **options: Any) -> bool:
        """Return what the value says: how it lies in memory changes no number."""
        return bool(self._now.is_contiguous(**options))

    def is_floating_point(self) -> bool:
        """Return what the value says."""
        return bool(self._now.is_floating_point())

    def __iter__(self) -> Iterator[Any]:
        if self._is_sequence():
            return iter([self[index] for index in range(len(self))])  # type: ignore[index]
        self.tracer.gave_up = f"a loop over {self.node.name}"
        return super().__iter__()

    def __len__(self) -> int:
        if not self._is_sequence():
            self._refuse("length")
        return len(self._now)

    def _refuse(self, what: str) -> Any:
        self.tracer.gave_up = f"the {what} of {self.node.name}"
        raise CannotTranslate(self.tracer.gave_up)

    def _is_sequence(self) -> bool:
        return isinstance(self._now, (tuple, list))


def _augmented(write: Any) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", write, (self, other), {})


def _number(what: str) -> Callable[..., Any]:
    return lambda self, *_: self._refuse(f"value as {what}")


for _name, _what in (("int", "int"), ("float", "float"), ("index", "index"), ("contains", "container")):
    setattr(_RunningProxy, f"__{_name}__", _number(_what))
for _name in _AUGMENTED:  # PyTorch's own proxy takes x += y for x = x + y, and does not see the write
    setattr(_RunningProxy, f"__{_name}__", _augmented(getattr(operator, _name)))
