"""What an exported program may not hold: a narrowed batch, sizes that the data tell, random numbers, written state."""

from typing import TYPE_CHECKING, Any

from engineworks.export.blame import at, node_line
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_FILLS = ("fill_", "zero_", "copy_")
_MAY_DRAW = {"dropout", "dropout_p", "train", "training"}  # arguments without which an operator draws nothing


def check_program(program: "ExportedProgram", batch: Batch | None = None) -> None:
    """Refuse a program that ``torch.export`` passes and that no engine could follow.

    Args:
        program: of ``torch.export``.
        batch: the range that it must have been captured for; None where that has been held otherwise.

    Raises:
        ExportError: with the reason, and the line of the user's code where the program knows it.
    """
    _check_sizes(program)
    if batch is not None:
        _check_range(program, batch)
    _check_deterministic(program)
    _check_stateless(program)


def _check_range(program: "ExportedProgram", batch: Batch) -> None:
    """Hold the program's batch range against the one asked for."""
    if batch.min == batch.max:
        return
    ranges = {str(symbol): (int(bound.lower), int(bound.upper)) for symbol, bound in program.range_constraints.items()}
    if any(bounds != (batch.min, batch.max) for bounds in ranges.values()) or not ranges:
        raise ExportError(f"the exported batch range is {ranges or 'fixed'}, expected {batch.min} to {batch.max}.")


def _check_sizes(program: "ExportedProgram") -> None:
    """Refuse sizes and numbers that only the data tell: torch names them u0, u1, … and zuf0, …"""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if any(str(size).startswith("u") for size in getattr(part, "shape", ())):
                raise ExportError(
                    f"the size of {node.name} depends on the data; TensorRT cannot plan for it.{at(node_line(node))}"
                )


def _check_stateless(program: "ExportedProgram") -> None:
    """Refuse operators that write in place on what the module holds."""
    from torch.export.graph_signature import InputKind

    held = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.kind != InputKind.USER_INPUT}
    for node in program.graph.nodes:
        first = getattr(node.args[0], "name", "") if node.args else ""
        if first in held and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            raise ExportError(
                f"forward changes the module's own state ({held[first]}), which an engine cannot keep."
                f"{at(node_line(node))}"
            )


def _check_deterministic(program: "ExportedProgram") -> None:
    """Refuse operators that draw random numbers, and memory that is read as it comes."""
    import torch

    for node in program.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _sleeping(node):
            raise ExportError(
                f"forward draws random numbers ({node.target} at {node.name}); such a graph cannot be compared."
                f"{at(node_line(node))}"
            )
        if "aten.empty" in str(node.target) or "aten.new_empty" in str(node.target):
            readers = [*node.users]
            if readers and not any(f".{fill}" in str(readers[0].target) for fill in _FILLS):
                raise ExportError(
                    f"forward reads memory that nothing was written to ({node.name}).{at(node_line(node))}"
                )


def _sleeping(node: "Node") -> bool:
    """Tell whether an operator that may draw random numbers does not: dropout at 0, or outside training."""
    given: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        given[argument.name] = node.kwargs.get(
            argument.name, node.args[index] if index < len(node.args) else argument.default_value
        )
    return any(name in _MAY_DRAW and not value for name, value in given.items())
