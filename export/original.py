"""The original: what is exported, and what every graph is then compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.export.inputs import InputSpec
from engineworks.export.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from engineworks.export.to_onnx import Exported

Arrays = Mapping[str, npt.NDArray[Any]]
PYTORCH, FILE = "pytorch-fp32", "onnx-original"
TITLES = {PYTORCH: "PyTorch", FILE: "the file as given"}


@dataclass(frozen=True)
class Original:
    """A network that runs.

    Attributes:
        inputs: in the order in which ``run`` takes them.
        run: takes a torch tensor for each input; returns tensors, in tuples, lists or dicts.
        export: from named rows and the outputs' names to a float32 graph.
        parameters: how many there are.
        title: what the original is called in figures: a key of ``TITLES``.
        module: all that ``run`` is, where it is a module.
        outputs: their names, where they have some of their own; else they are named after what ``run`` returns.
    """

    inputs: tuple[InputSpec, ...]
    run: Callable[..., Any]
    export: Callable[[Arrays, tuple[str, ...], Recipe], "Exported"]
    parameters: int
    title: str = PYTORCH
    outputs: tuple[str, ...] = ()
    module: "nn.Module | None" = None


def in_batches(run: Callable[..., Any], size: int) -> Callable[..., Any]:
    """Make a run of any number of rows out of one that takes ``size`` rows at a time.

    The last batch is filled up with the first rows; what is answered to those is dropped.
    """

    def whole(*tensors: Any) -> Any:
        import torch
        from torch.utils._pytree import tree_map

        count = len(tensors[0])
        filled = [tensor[torch.arange(-(-count // size) * size) % count] for tensor in tensors]
        parts = [run(*(tensor[start : start + size] for tensor in filled)) for start in range(0, count, size)]
        return tree_map(lambda *each: torch.cat(each)[:count] if torch.is_tensor(each[0]) else each[0], *parts)

    return whole


def of_module(module: "nn.Module", inputs: tuple[InputSpec, ...]) -> Original:
    """Take a module in eval mode, float32, on the CPU."""
    from engineworks.export.prove import export_graph

    return Original(
        inputs=inputs,
        run=module,
        export=lambda arrays, outputs, recipe: export_graph(module, dict(arrays), outputs, recipe),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        module=module,
    )
