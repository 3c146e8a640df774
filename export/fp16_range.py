"""Whether FP16 holds what a network computes: values beyond its ends are refused by layer, those near them noted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engineworks.calibration import LARGEST_FP16, SMALLEST_FP16, beyond_fp16
from engineworks.export.clean import modules
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto

_NEAR = 0.25  # of FP16's range: worth a note, for other inputs may go further


def check_ranges(graph: "ModelProto", ranges: Mapping[str, float]) -> tuple[str, ...]:
    """Refuse values that FP16 cannot hold, by layer; note those that come near its ends.

    Args:
        graph: the float32 graph, whose nodes know their modules.
        ranges: tensor → largest magnitude that was seen.

    Returns:
        The notes.

    Raises:
        ExportError: naming the first layer beyond, its module, and how far it goes.
    """
    where, beyond = modules(graph), beyond_fp16(ranges)
    if beyond:
        name, value = next(iter(beyond.items()))
        raise ExportError(
            f"FP16 overflows: {_named(name, where)} reaches {value:.3g} on the sample inputs, FP16 ends at "
            f"{LARGEST_FP16:.0f} ({len(beyond)} such tensors). Use --bf16 or --fp32."
        )
    small = [name for name, value in ranges.items() if 0 < value < SMALLEST_FP16]
    notes = [
        f"FP16 underflow: {_named(name, where)} stays below {SMALLEST_FP16:.2g}; digits are lost." for name in small
    ]
    name, value = max(ranges.items(), key=lambda item: item[1])
    if value >= LARGEST_FP16 * _NEAR:
        notes.append(
            f"FP16 range: {_named(name, where)} reaches {value:.3g} of {LARGEST_FP16:.0f}; larger inputs may overflow."
        )
    return tuple(notes)


def _named(value: str, where: dict[str, str]) -> str:
    return f"{where[value]} ({value})" if where.get(value) else value
