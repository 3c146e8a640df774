"""Which images a network is fitted on and which it is measured on, and how many run at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from engineworks.calibration.graph import Array
from engineworks.calibration.walk import Batches, session
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto

Quality = Literal["fast", "normal", "high"]
_FIT = {"fast": 0, "normal": 50, "high": 100}  # images that layers are fitted on, at most
MOST_FIT = max(_FIT.values())
MOST_HELD = 25  # images that steps are compared on, at most
_ROWS = 5  # images that run at once
_ROOM = 1_500_000_000  # bytes for the values of the fitting images


def rows_of(batches: Batches) -> Iterator[dict[str, Array]]:
    """Take batches apart: each row as a batch of one."""
    for batch in batches:
        for index in range(len(next(iter(batch.values())))):
            yield {name: values[index : index + 1] for name, values in batch.items()}


def grouped(rows: Sequence[Mapping[str, Array]], fixed: int, size: int = _ROWS) -> list[dict[str, Array]]:
    """Put rows together again, ``size`` at a time; of a fixed batch, the rows that fill none are left away.

    Args:
        rows: each a batch of one.
        fixed: the graph's batch; 0 where it is free.
        size: how many run at once where it is free.

    Raises:
        ExportError: there are fewer than the fixed batch.
    """
    count = len(rows) // fixed * fixed if fixed else len(rows)
    groups = [rows[start : start + (fixed or size)] for start in range(0, count, fixed or size)]
    if not groups:
        raise ExportError(f"calibration: the graph's batch is fixed at {fixed}, got {len(rows)} images for a part.")
    return [{name: np.concatenate([row[name] for row in group]) for name in group[0]} for group in groups]


def split(
    model: "ModelProto", batches: Batches, held_out: Batches | None, quality: Quality
) -> tuple[Batches, Batches, tuple[str, ...]]:
    """Divide the images into those for fitting and those for measuring; with a note where they are the same.

    Args:
        model: the float32 graph.
        batches: inputs to fit on; where none are held out, the last quarter is measured on.
        held_out: inputs to measure on.
        quality: says how many a fit takes at most.

    Raises:
        ExportError: no images, or fewer than a fixed batch.
    """
    rows = list(rows_of(batches))
    if not rows:
        raise ExportError("calibration: expected images, got none.")
    fixed = fixed_rows(model)
    if held_out is not None:
        most = max(min(_FIT[quality], _affordable(model, rows[0])), fixed, 1)
        few = list(rows_of(held_out))[: max(MOST_HELD, fixed)]
        return grouped(rows[:most], fixed), grouped(few, fixed), ()
    if len(rows) < 4 * max(fixed, 1):
        groups = grouped(rows, fixed)
        return groups, groups, (f"{len(rows)} images: none could be held out of the fit.",)
    held = max(min(MOST_HELD, -(-len(rows) // 4)), fixed)
    most = max(min(_FIT[quality], _affordable(model, rows[0])), fixed, 1)
    return grouped(rows[: min(len(rows) - held, most)], fixed), grouped(rows[-held:], fixed), ()


def fixed_rows(model: "ModelProto") -> int:
    """Return the graph's batch where it is fixed; 0 where it is free."""
    dims = [value.type.tensor_type.shape.dim for value in model.graph.input]
    return max((int(axes[0].dim_value) for axes in dims if axes), default=0)


def _affordable(model: "ModelProto", row: Mapping[str, Array]) -> int:
    """Return how many images' values fit into memory: of the largest tensor, about four copies live at a time."""
    from onnx import ModelProto, ValueInfoProto

    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.ClearField("output")
    names = [node.output[0] for node in model.graph.node if node.op_type != "Constant"]
    shown.graph.output.extend(ValueInfoProto(name=name) for name in names)
    size = fixed_rows(model) or 1
    values = session(shown).run(names, {name: np.repeat(array, size, axis=0) for name, array in row.items()})
    largest = max(value.nbytes // size for value in values)
    return int(max(8, _ROOM // (4 * max(largest, 1))))
