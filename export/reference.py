"""What the PyTorch original answers, and how much noise a precision costs it: the yardsticks of every comparison.

The noise floor is not a constant and needs no GPU: the network is run once more in float32 with every tensor rounded
to the type in question, which is what a run in that type with exact sums would give. On GoogLeNet it equals torch's
own ``.half()`` to 0.01 dB, in an eighth of the time, and it also works where torch's CPU has no FP16 kernel (LRN).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.blame import raised
from engineworks.export.half import HalfType
from engineworks.export.inputs import DTYPES
from engineworks.export.interpret import interpreter, rounded_copy
from engineworks.export.retrace import ROWS_DIFFER, why_rows_differ
from engineworks.export.samples import rows
from engineworks.export.signature import named_outputs
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import EngineworksError, ExportError, ParityError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import fx
    from torch.export import ExportedProgram

Array = npt.NDArray[Any]
RoundedRun = Callable[[Mapping[str, Array], HalfType], list[Array]]
"""Runs the original on named inputs with every tensor, weights among them, rounded to a type; gives its outputs."""

_SIGNIFICAND = {"fp32": 24, "fp16": 11, "bf16": 8}  # bits, the hidden one included (IEEE 754-2019, table 3.5)
_SAME_DB = 90.0  # 15 bits: above what other sums in float32 cost a deep network, far below a batch that matters
_AVERAGES = {"GlobalAveragePool", "ReduceMean", "ReduceSum"}
_DB_PER_BIT = 20 * math.log10(2)


def run_once(run: Callable[..., Any], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the original; its outputs by name (``signature.named_outputs``).

    Raises:
        ExportError: it raises, or returns something else than tensors whose first axis is the batch, of a dtype that is
            exported.
    """
    named = named_outputs(_called(run, inputs), len(next(iter(inputs.values()))), tuple(inputs))
    for name, tensor in named.items():
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise ExportError(f"output {name}: {tensor.dtype} is not exported; return one of {', '.join(DTYPES)}.")
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def answer(run: Callable[..., Any], inputs: Mapping[str, Array]) -> list[Array]:
    """Run the original, a module or what is called like one; its outputs, flattened in the order of ``forward``."""
    from torch.utils._pytree import tree_leaves

    return [leaf.detach().numpy() for leaf in tree_leaves(_called(run, inputs)) if leaf is not None]


def _called(run: Callable[..., Any], inputs: Mapping[str, Array]) -> Any:
    import torch

    try:
        with torch.inference_mode():
            return run(*(torch.tensor(array) for array in inputs.values()))  # a copy: forward may work in place
    except EngineworksError:
        raise
    except Exception as error:  # the user's own
        raise raised(error, len(next(iter(inputs.values())))) from error


def answers_by_batch(
    run: Callable[..., Any], inputs: Mapping[str, Array], reference: Sequence[Array], sizes: Sequence[int]
) -> dict[int, list[Array]]:
    """Return what the original answers at each batch size, its samples repeated or cut to that many rows.

    Args:
        run: the original.
        inputs: the samples.
        reference: its outputs for them.
        sizes: the batch sizes.

    The original itself is run at the smallest size; where that takes in all samples, on the first two alone as well.
    Where its rows there are, to within float32 rounding, those that it gives among all samples, a row's answer does not
    depend on its batch, and the larger sizes are made of the same rows.

    Raises:
        ParityError: a row's answer depends on the rows beside it, so that a free batch means nothing.
    """
    count = len(next(iter(inputs.values())))
    smallest = list(reference) if count == min(sizes) else _at(run, inputs, min(sizes))
    repeated = {size: [rows(output, size) for output in reference] for size in sizes}
    apart = [*zip(repeated[min(sizes)], smallest, strict=True)]
    if min(sizes) >= count:  # all samples are in it: only other neighbours would show
        two = _at(run, {name: array[:2] for name, array in inputs.items()}, min(sizes))
        apart += zip([rows(output[:2], min(sizes)) for output in reference], two, strict=True)
    alone = all(signal.shape == other.shape and sqnr(signal, other) > _SAME_DB for signal, other in apart)
    if not alone and len(sizes) > 1:
        raise ParityError(why_rows_differ(run, inputs) or ROWS_DIFFER)
    return repeated | {min(sizes): smallest}


def _at(run: Callable[..., Any], inputs: Mapping[str, Array], size: int) -> list[Array]:
    return answer(run, {name: rows(array, size) for name, array in inputs.items()})


def noise_floor(run: RoundedRun, inputs: Mapping[str, Array], exact: Sequence[Array], kind: HalfType) -> list[float]:
    """Return for each output the decibels at which rounding every tensor to ``kind`` leaves it, over all rows."""
    size = len(exact[0])
    return noise_floors(run, inputs, exact, kind, [size])[size]


def noise_floors(
    run: RoundedRun, inputs: Mapping[str, Array], exact: Sequence[Array], kind: HalfType, sizes: Sequence[int]
) -> dict[int, list[float]]:
    """Return at each batch size, for each output, the decibels at which rounding every tensor to ``kind`` leaves it.

    Args:
        run: the original, as a route of export gives it.
        inputs: a few rows; 2 or more where the batch is free.
        exact: what the original answers to them in float32.
        kind: ``fp16`` or ``bf16``.
        sizes: batch sizes; of fewer rows than there are here, the worst so many count (``worst_sqnr``).

    Rounding that overflows gives −inf: the type cannot carry the network. What is exact gives inf.
    """
    pairs = list(zip(exact, run(inputs, kind), strict=True))
    assert all(signal.shape == other.shape for signal, other in pairs), "numpy would stretch one to the other"
    return {size: [worst_sqnr(signal, other, size) for signal, other in pairs] for size in sizes}


def worst_sqnr(signal: Array, other: Array, size: int) -> float:
    """Return the decibels that ``other`` keeps of the worst ``size`` neighbouring rows; of all, where ``size`` is more.

    Rows whose signal is 0 throughout say nothing of their own.
    """
    if not np.isfinite(other).all():
        return -math.inf
    parts = [slice(start, start + size) for start in range(len(signal) - size + 1)]
    alone = [sqnr(signal[part], other[part]) for part in parts if signal[part].any()]
    return min([sqnr(signal, other), *alone])


def float32_floor(half_floor: float, kind: HalfType, graph: "ModelProto") -> float:
    """Return the decibels that two correct float32 runs keep: the half type's floor and the bits it lacks, less sums.

    Float32 has 13 bits more than FP16 (6.02 dB each). Rounding inside a sum of K terms grows as √K in amplitude
    (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4), so 10·log10 of the largest K is taken off.
    """
    gained = _DB_PER_BIT * (_SIGNIFICAND["fp32"] - _SIGNIFICAND[kind])
    return half_floor + gained - 10 * math.log10(_longest_sum(graph))


def _longest_sum(graph: "ModelProto") -> int:
    """Return how many terms the longest sum has: of a kernel, or of an average or a total over a value's own axes."""
    values = (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
    sizes = {value.name: [int(axis.dim_value) for axis in value.type.tensor_type.shape.dim] for value in values}
    sizes |= {tensor.name: [*tensor.dims] for tensor in graph.graph.initializer}
    return max((_terms(node, sizes) for node in graph.graph.node), default=1) or 1


def _terms(node: "NodeProto", sizes: Mapping[str, Sequence[int]]) -> int:
    """Return how many products or values a node adds up for each value that it gives; 0 where that is not known."""
    first, second, *_ = [*(sizes.get(name, ()) for name in node.input), (), ()]
    result = sizes.get(node.output[0], ())
    flags = {attribute.name: int(attribute.i) for attribute in node.attribute}
    if node.op_type in _AVERAGES:
        return _all_but_batch(first) // max(_all_but_batch(result), 1) if first and result else 0
    if node.op_type == "Conv":
        return math.prod(second[1:])
    if node.op_type == "ConvTranspose" and second:
        return math.prod(second) // max(second[1] * flags.get("group", 1), 1)
    if node.op_type == "Gemm" and second:
        return second[1 if flags.get("transB") else 0]
    if node.op_type == "MatMul":
        return [*second[-2:], *first[-1:], 0][0]
    return 0


def _all_but_batch(sizes: Sequence[int]) -> int:
    return math.prod(int(size) for size in sizes[1:] if size > 0)


def rounded_program(program: "ExportedProgram") -> RoundedRun:
    """Make the rounded run of an exported program."""
    import torch
    from torch.export.graph_signature import InputKind

    def run(inputs: Mapping[str, Array], kind: HalfType) -> list[Array]:
        given, held = iter(inputs.values()), {**program.state_dict, **program.constants}
        lined_up = [
            torch.from_numpy(next(given)) if spec.kind == InputKind.USER_INPUT else held[str(spec.target)]
            for spec in program.graph_signature.input_specs
        ]
        with torch.no_grad():
            outputs = interpreter(program.graph_module, kind).run(*lined_up)
        return [output.numpy() for output in outputs if output is not None]  # None stands where forward returns one

    return run


def rounded_trace(traced: "fx.GraphModule") -> RoundedRun:
    """Make the rounded run of a symbolic trace, whose modules hold their own weights."""
    import torch
    from torch.utils._pytree import tree_leaves

    def run(inputs: Mapping[str, Array], kind: HalfType) -> list[Array]:
        with torch.no_grad():
            given = (torch.from_numpy(array) for array in inputs.values())
            result = interpreter(rounded_copy(traced, kind), kind).run(*given)
        return [leaf.numpy() for leaf in tree_leaves(result) if leaf is not None]

    return run
