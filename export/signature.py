"""What a network's ``forward`` takes and returns, by name: inputs from its parameters, outputs from what it answers."""

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engineworks.export.inputs import InputSpec
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def named_inputs(module: "nn.Module", shapes: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Put the given shapes in the order of ``forward``'s parameters.

    Args:
        module: any.
        shapes: named after parameters; one without a name is the first parameter's, and is called ``input``.

    Raises:
        ExportError: a name that ``forward`` does not have, one given twice, or a parameter that is left over.
    """
    parameters = _parameters(module)
    if not parameters:
        raise ExportError(f"{type(module).__name__}.forward names no input: it takes {_taken(module)}.")
    if len(shapes) == 1 and not shapes[0].name:
        _check_rest(parameters, {next(iter(parameters), ""): shapes[0]}, type(module).__name__)
        return (InputSpec("input", shapes[0].shape, shapes[0].dtype),)
    given = {shape.name: shape for shape in shapes}
    unknown = [name or "one without a name" for name in given if name not in parameters]
    if unknown or len(given) < len(shapes):
        known = ", ".join(parameters) or "nothing"
        raise ExportError(f"--shape: forward takes {known}; got {', '.join(unknown) or 'a name twice'}.")
    _check_rest(parameters, given, type(module).__name__)
    return tuple(given[name] for name in parameters if name in given)


def _parameters(module: "nn.Module") -> dict[str, bool]:
    """Return the parameters that can be given by position, and whether each has a default.

    Raises:
        ExportError: one that must be given by keyword.
    """
    found = inspect.signature(module.forward).parameters.values()
    needed = [item.name for item in found if item.kind is item.KEYWORD_ONLY and item.default is item.empty]
    if needed:
        raise ExportError(f"{type(module).__name__}.forward needs {needed[0]} by keyword. Give it a default.")
    return {item.name: item.default is not item.empty for item in found if item.kind in _KINDS}


def _taken(module: "nn.Module") -> str:
    return str(inspect.signature(module.forward)).partition(" ->")[0]


def _check_rest(parameters: dict[str, bool], given: dict[str, InputSpec], network: str) -> None:
    """Refuse a parameter without a shape or a default, and one with a default before another that has a shape."""
    missing = [name for name, optional in parameters.items() if name not in given and not optional]
    if missing:
        raise ExportError(f"{network}.forward also takes {', '.join(missing)}. Add --shape {missing[0]}:SIZES.")
    order = list(parameters)
    last = max((order.index(name) for name in given if name in order), default=-1)
    skipped = [name for name in order[: last + 1] if name not in given]
    if skipped:
        raise ExportError(f"{network}.forward takes {skipped[0]} before {order[last]}. Add --shape {skipped[0]}:SIZES.")


def named_outputs(result: Any, rows: int, inputs: Sequence[str]) -> "dict[str, Tensor]":
    """Name what ``forward`` returned: ``output``, or by the keys and places of its dicts, tuples and lists.

    Args:
        result: a tensor, or tensors in dicts, tuples, lists and named tuples, nested; None is passed over.
        rows: the batch size that it was given.
        inputs: the inputs' names, which no output may have.

    Raises:
        ExportError: something else than tensors, none at all, or one without the batch as its first axis.
    """
    from torch import Tensor
    from torch.utils._pytree import tree_flatten_with_path

    leaves = [(path, leaf) for path, leaf in tree_flatten_with_path(result)[0] if leaf is not None]
    named: dict[str, Tensor] = {}
    for path, leaf in leaves:
        words = "_".join(_word(key) for key in path)
        name = _free(f"output_{words}".rstrip("_") if not words or words[0].isdigit() else words, {*inputs, *named})
        if not isinstance(leaf, Tensor):
            raise ExportError(f"forward returns a {type(leaf).__name__} ({name}), where only tensors can be exported.")
        if leaf.dim() == 0 or leaf.shape[0] != rows:
            raise ExportError(
                f"output {name}: expected the batch as its first axis ({rows} rows), got {tuple(leaf.shape)}."
            )
        named[name] = leaf
    if not named:
        raise ExportError("forward returns no tensor.")
    return named


def _word(key: Any) -> str:
    """Spell one step of a path: a dict's key, a field, or a place."""
    value = next((getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)), key)
    return re.sub(r"\W+", "_", str(value)) or "_"


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free(f"{name}_out", taken)
