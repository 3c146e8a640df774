"""The original, value by value: what PyTorch computes under each name of the graph, and each layer alone.

A graph's value has the name of the trace's node (or the program's) that it was written from. Walking that trace, every
value is asked of PyTorch twice: behind all layers before it, and on the very inputs that the graph's own layer had. The
second tells where an error enters; the first, how far it has come.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineworks.export.half import HalfType
from engineworks.export.interpret import interpreter, rounded, rounded_copy

if TYPE_CHECKING:
    import torch
    from torch import fx, nn
    from torch.export import ExportedProgram

    from engineworks.export.translate import Translation

Tensors = Mapping[str, "torch.Tensor"]
Seen = Callable[[str, "torch.Tensor"], None]


@dataclass(frozen=True)
class Sums:
    """The sums behind a value: how many terms each has, and the length of each channel's weights (None: no weights).

    ``bias`` is the magnitude of what is added to each channel at the end.
    """

    terms: int
    lengths: "torch.Tensor | None" = None
    bias: "torch.Tensor | None" = None


@dataclass(frozen=True)
class Taps:
    """The original as a program that can be walked.

    Attributes:
        whole: makes the original's own layers, nothing folded.
        typed: the same with batch norms folded, as the graph has them.
        folded: node of ``typed`` → node of ``whole`` whose value it has.
        held: what the program takes before the inputs; empty for a trace, whose modules hold their own weights.
    """

    whole: "Callable[[], fx.GraphModule]"
    typed: "fx.GraphModule"
    folded: Mapping[str, str] = field(default_factory=dict)
    held: "Callable[[], Sequence[torch.Tensor | None]]" = tuple

    def exact(self, inputs: Sequence["torch.Tensor"], seen: Seen, given: Tensors | None = None) -> None:
        """Run the original itself and show each value under the graph's name for it.

        Args:
            inputs: in the order in which the original takes them.
            seen: told each name and value while it is what PyTorch made it; a later layer may write into it.
            given: for each value named here, what the layers after it are given instead: then each runs alone.
        """
        named = dict.fromkeys(self.folded, "") | {norm: layer for layer, norm in self.folded.items()}
        self._walk(self.whole(), inputs, seen, given or {}, named, None)

    def rounded(self, kind: HalfType, inputs: Sequence["torch.Tensor"], seen: Seen, given: Tensors) -> None:
        """Run each folded layer alone with its weights and its result rounded to ``kind``: what a right graph gives."""
        module = rounded_copy(self.typed, kind)
        self._walk(module, inputs, seen, given, {}, kind)

    def _walk(
        self,
        module: "fx.GraphModule",
        inputs: Sequence["torch.Tensor"],
        seen: Seen,
        given: Tensors,
        named: Mapping[str, str],
        kind: HalfType | None,
    ) -> None:
        import torch

        def after(node: "fx.Node", result: Any) -> Any:
            name = named.get(node.name, node.name)
            if not isinstance(result, torch.Tensor) or not name or node.op == "output":
                return result
            seen(name, result)
            other = given.get(name)
            return result if other is None else other.reshape(result.shape).to(result.dtype).clone()

        held = [tensor if tensor is None or kind is None else rounded(tensor, kind) for tensor in self.held()]
        with torch.no_grad():
            interpreter(module, kind, after).run(*held, *(tensor.clone() for tensor in inputs))

    def inputs(self) -> list[str]:
        """Name the nodes that are the original's inputs."""
        return [node.name for node in self.typed.graph.nodes if node.op == "placeholder"][len(self.held()) :]

    def outputs(self) -> list[str]:
        """Name the nodes whose values are the outputs, in order."""
        from torch import fx
        from torch.utils._pytree import tree_leaves

        last = next(node for node in reversed(self.typed.graph.nodes) if node.op == "output")
        return [leaf.name for leaf in tree_leaves(last.args[0]) if isinstance(leaf, fx.Node)]

    def layers(self) -> "Iterator[tuple[str, tuple[str, ...], str]]":
        """Yield each node's name, the nodes that it reads, and the module that it belongs to."""
        for node in self.typed.graph.nodes:
            stack = node.meta.get("nn_module_stack")
            module = str(next(reversed(stack.values()))[0]) if stack else ""
            yield node.name, tuple(source.name for source in node.all_input_nodes), module

    def read_as_weights(self) -> set[str]:
        """Name the nodes whose values are weights or biases of functions."""
        return {
            source.name
            for node in self.typed.graph.nodes
            if node.op == "call_function" and _is_weighted(node)
            for source in node.all_input_nodes[1:]
        }

    def sums(self, name: str, result: "torch.Tensor", read: "torch.Tensor | None", weights: Tensors) -> Sums:
        """Tell what is summed for a value: of a layer with weights, else as many elements as go into one.

        Args:
            name: the value's node.
            result: the value.
            read: what the node reads first, where that is known.
            weights: what the nodes of ``read_as_weights`` gave.
        """
        weight, bias = (None if one is None else one.detach() for one in self._weights(name, weights))
        if weight is None:
            return Sums(max(1, 0 if read is None else read.numel() // max(result.numel(), 1)))
        if weight.shape[0] != result.shape[1]:  # transposed
            groups = result.shape[1] // weight.shape[1]
            weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).reshape(result.shape[1], -1)
        flat = weight.reshape(weight.shape[0], -1)
        return Sums(flat.shape[1], flat.norm(dim=1), None if bias is None else bias.abs())

    def _weights(self, name: str, known: Tensors) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
        from torch import nn

        node = next(node for node in self.typed.graph.nodes if node.name == name)
        if node.op == "call_module":
            layer: Any = self.typed.get_submodule(str(node.target))
            kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
            turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
            if not isinstance(layer, (*kinds, *turned)):
                return None, None
            return layer.weight, layer.bias
        given = [*node.args, *node.kwargs.values()] if _is_weighted(node) else []
        found = [known.get(getattr(source, "name", "")) for source in (*given[1:3], None, None)]
        return found[0], found[1] if found[1] is not None and found[1].dim() == 1 else None


def _is_weighted(node: "fx.Node") -> bool:
    return node.op == "call_function" and any(word in str(node.target) for word in ("conv", "linear"))


def trace_taps(module: "nn.Module", made: "Translation") -> Taps:
    """Make the taps of a translation: its trace as it was before anything was folded, on the module's own layers."""
    from torch import fx

    return Taps(lambda: fx.GraphModule(module, made.before), made.traced, made.folded)


def program_taps(program: "ExportedProgram") -> Taps:
    """Make the taps of an exported program, which takes its weights as inputs."""
    from torch.export.graph_signature import InputKind

    tensors = {**program.state_dict, **program.constants}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind != InputKind.USER_INPUT]
    return Taps(
        lambda: program.graph_module,
        program.graph_module,
        held=lambda: [tensors.get(str(spec.target)) for spec in specs],
    )
