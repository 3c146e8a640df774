"""What comparisons on samples cannot see: values read into Python, state that is kept, ways that no sample takes.

One run of the original on inputs unlike the samples, watched. What the forward reads out of a tensor into Python (a
branch, an index, a number) is noted where it happens, whatever its outcome; what the run leaves changed in the module
is looked at; and its answers are held against the graph's, which is how a way shows that no sample takes.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.blame import at
from engineworks.export.reference import answer
from engineworks.export.retrace import first_change, last_return, other_way, why_rows_differ
from engineworks.export.samples import rows
from engineworks.export.watch import watched
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ExportError, ParityError
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    from torch import nn

    from engineworks.runtime.backend import OrtSession

Array = npt.NDArray[Any]
Run = Callable[..., Any]
_SAME_DB = 60.0  # 10 of float32's 24 bits: other sums keep 100 dB on ordinary inputs, another function not even 40
_LOUD = 16.0  # times a sample: beyond every clamp and threshold that is met in daily work, far from float32's end
_HOLDERS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Probes:
    """Inputs unlike the samples, a few rows, and what the original, of which ``module`` is all or None, answers."""

    inputs: Mapping[str, Array]
    answers: Sequence[Array]
    run: Run
    module: "nn.Module | None" = None

    def mixed(self) -> str | None:
        """Return the reason with its line where a row's answer depends on the rows beside it, or on chance."""
        return why_rows_differ(self.run, self.inputs)

    def blame(self) -> str:
        """Return, as the end of a message, the user's line at which a capture takes another way than a call."""
        import torch

        if self.module is None:
            return ""
        module = self.module

        def capture(*tensors: torch.Tensor) -> Any:
            free = tuple({0: torch.export.Dim.AUTO} for _ in tensors)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.export.export(module, tensors, dynamic_shapes=free, strict=False)

        return at(other_way(self.run, capture, self.inputs))


def examine(run: Run, module: "nn.Module | None", inputs: Mapping[str, Array], batch: Batch) -> Probes:
    """Run the original for the first time, on inputs unlike its samples, and refuse what it gives away.

    Args:
        run: the original, called with a tensor for each input.
        module: whose state must be the same afterwards, where there is a module.
        inputs: the samples, as arrays.
        batch: the sizes it is promised for.

    Raises:
        ExportError: the forward raises, reads values into Python, keeps state, or returns what is no tensor; with the
            line of the user's code.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    unlike = _unlike(inputs, min(max(3, batch.min), batch.max))
    _check_built(module)
    before = _held(module)
    reads: list[str] = []
    with torch.inference_mode():
        result = watched(run, unlike, reads, free=batch.min < batch.max)
    if reads:
        raise ExportError(f"forward reads {reads[0]}")
    leaves = [leaf for leaf in tree_leaves(result) if leaf is not None]
    _check_outputs(leaves, len(next(iter(unlike.values()))), run, unlike)
    answers = [leaf.detach().as_subclass(torch.Tensor).resolve_conj().numpy() for leaf in leaves]
    probes = Probes(unlike, answers, run, module)
    _check_state(probes, before)
    return probes


def _check_built(module: "nn.Module | None") -> None:
    from torch.nn.parameter import is_lazy

    for name, tensor in module.named_parameters() if module is not None else ():
        if is_lazy(tensor):
            raise ExportError(f"{name} has no size yet. Call the module once, or load its weights, before the export.")


def _check_outputs(leaves: Sequence[Any], count: int, run: Run, inputs: Mapping[str, Array]) -> None:
    """Refuse outputs that are no tensors with one row for each row of the input."""
    import torch

    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            what = f"a {type(leaf).__name__} among its outputs; only tensors"
        elif tuple(leaf.shape[:1]) != (count,):
            what = f"an output of shape {tuple(leaf.shape)} for {count} rows; only what has the batch as its first axis"
        elif leaf.dtype.is_complex or leaf.layout != torch.strided:
            what = f"{leaf.dtype}, {leaf.layout}; only dense real tensors"
        else:
            continue
        raise ExportError(f"forward returns {what} can be exported.{at(last_return(run, inputs))}")
    if not leaves:
        raise ExportError(f"forward returns nothing; only tensors can be exported.{at(last_return(run, inputs))}")


def hold(session: "OrtSession", outputs: Sequence[str], probes: Probes, smallest: int, *, free: bool) -> None:
    """Refuse a float32 graph that ``differing`` finds.

    Raises:
        ParityError: the graph is another function than the original, or a row's answer depends on the rows beside it.
    """
    refuse(probes, differing(session, outputs, probes, smallest, free=free))


def refuse(probes: Probes, found: "tuple[str, float] | None") -> None:
    """Raise what ``differing`` found. The reason is looked for in PyTorch: in one thread at a time, for it keeps state.

    Raises:
        ParityError: with the reason and the user's line; nothing for None.
    """
    if found is not None:
        raise ParityError(probes.mixed() or _otherwise(*found) + probes.blame())


def differing(
    session: "OrtSession", outputs: Sequence[str], probes: Probes, smallest: int, *, free: bool
) -> "tuple[str, float] | None":
    """Hold a float32 graph's answers against the original's; where the batch is free, those to each row by itself.

    Only float outputs are compared, where they are finite: one index more or less says nothing.

    Args:
        session: the graph.
        outputs: the names of its outputs, in the original's order.
        probes: what the original answers.
        smallest: the smallest batch.
        free: whether there are larger ones.

    Returns:
        The first output that is another, and the decibels that it keeps; None where there is none.
    """
    for row in range(len(next(iter(probes.inputs.values()))) if free else 1):
        few = {name: rows(array[row : row + 1], smallest) if free else array for name, array in probes.inputs.items()}
        results = session.run({**few}, list(outputs))
        for name, expected, got in zip(outputs, probes.answers, results, strict=False):
            kept = _decibels(rows(expected[row : row + 1], smallest) if free else expected, np.asarray(got))
            if not kept > _SAME_DB:
                return name, kept
    return None


def _decibels(expected: Array, got: Array) -> float:
    if expected.dtype.kind != "f" or not np.isfinite(expected).all() or expected.size == 0:
        return np.inf
    return sqnr(expected, got) if expected.shape == got.shape else -np.inf


def _otherwise(output: str, kept: float) -> str:
    return (
        f"output {output}: on inputs unlike the samples (negated, {_LOUD:g} times as large, noise) the graph keeps "
        f"{kept:.1f} dB of the original's answer, {_SAME_DB:.0f} are needed: forward takes another way there, or when "
        "it is exported, or mixes rows. Nothing was written."
    )


def _unlike(inputs: Mapping[str, Array], count: int) -> dict[str, Array]:
    """Make three rows unlike the samples, repeated or cut to ``count``: negated, loud, and noise of the same spread.

    A constant is none of them: what a norm makes of it is rounding alone.
    """

    def unlike(array: Array) -> Array:
        if array.dtype.kind != "f":
            return np.roll(array, 1, axis=0)
        noise = np.random.default_rng(0).standard_normal(array[:1].shape)
        made = np.concatenate([-array[:1], _LOUD * array[-1:], array.mean() + array.std() * noise])
        return made.astype(array.dtype)

    return {name: rows(unlike(array), count) for name, array in inputs.items()}


@dataclass(frozen=True)
class _Attribute:
    """What a module holds under a name: where it is kept, the value, and a print that is equal as long as that is."""

    holder: dict[str, Any]
    name: str
    value: Any
    print: Any

    def put(self, value: Any) -> None:
        self.holder[self.name] = value


def _held(module: "nn.Module | None") -> dict[str, _Attribute]:
    """Describe all that a module and its children hold, by dotted name; hooks and torch's own marks left out."""
    from torch import nn

    marks = {*vars(nn.Module())} - {"training"}
    held: dict[str, _Attribute] = {}
    for where, child in module.named_modules() if module is not None else ():
        own = vars(child)
        for holder in (own, *(own[name] for name in _HOLDERS if own.get(name))):
            for name, value in holder.items():
                if holder is not own or name not in marks:
                    held[f"{where}.{name}".lstrip(".")] = _Attribute(holder, name, value, _print(value, 0))
    return held


def _print(value: Any, depth: int) -> Any:
    """Return what is equal as long as a value is the same."""
    import torch

    if isinstance(value, (bool, int, float, complex, str, bytes)) or value is None:
        return repr(value)
    if isinstance(value, torch.Tensor):
        small = not isinstance(value, torch.nn.Parameter) and value.device.type == "cpu" and not value.is_sparse
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if small else b""
        return id(value), tuple(value.shape), 0 if value.is_inference() else value._version, hash(content)
    if isinstance(value, dict) and depth < 4:
        return [(repr(key), _print(part, depth + 1)) for key, part in value.items()]
    if isinstance(value, (list, tuple)) and depth < 4:
        return [_print(part, depth + 1) for part in value]
    if isinstance(value, (torch.Generator, np.random.Generator)):
        return repr(value.get_state() if isinstance(value, torch.Generator) else value.bit_generator.state)
    return id(value), len(value) if isinstance(value, (set, frozenset)) else 0


class _Poison:
    """Stands for an attribute that nothing may read: hardly any use of it does not raise."""

    __eq__ = __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError


def _check_state(probes: Probes, before: Mapping[str, _Attribute]) -> None:
    """Refuse state that was changed, unless the forward only writes it: an attribute kept for somebody else's eyes."""
    now = _held(probes.module)
    changed = {name: part for name, part in now.items() if name not in before or part.print != before[name].print}
    if not changed:
        return
    harmless = all("_parameters" in part.holder and part.name != "training" for part in changed.values())
    try:
        if harmless:
            for part in changed.values():
                part.put(_Poison())
            with contextlib.suppress(Exception):  # an exception: it was read
                if all(map(np.array_equal, probes.answers, answer(probes.run, probes.inputs))):
                    return
    finally:
        for name, part in changed.items():
            if name in before:
                before[name].put(before[name].value)
            else:
                part.holder.pop(part.name, None)
    line = first_change(
        probes.run,
        probes.inputs,
        lambda: [_print(part.holder.get(part.name), 0) for part in changed.values()],
    )
    raise ExportError(
        f"forward changes the module's own state ({min(changed)}), which an engine cannot keep.{at(line)}"
    )
