"""What each rung must reach: the noise that rounding alone makes, measured on the network itself, at each batch size.

The noise of a row depends on the row. A batch of few rows is therefore held to the worst of as many, and not to the
mean over more: a network of few outputs may lose several bits more on its first row than on four together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from engineworks.export.half import HalfType
from engineworks.export.parity import Yardstick
from engineworks.export.referee import Referee
from engineworks.export.reference import float32_floor, noise_floors, worst_sqnr
from engineworks.export.samples import rows
from engineworks.export.to_onnx import Exported
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
Needed = dict[int, list[tuple[float, str]]]
"""Batch size → for each output the decibels that a correct run keeps, and where that figure comes from."""
Decibels = Mapping[int, list[float]]
_ROWS = 4  # the floor's noise is averaged over every element of these rows' outputs
LEAST_DB = 20.0  # noise of a tenth of the answers: to be as good as that proves nothing
LEAST_INT8_DB = 10.0  # noise of a third of the answers: trained networks keep 18 to 40 dB


def within(wanted: int, batch: Batch) -> int:
    """Return the number of rows nearest to ``wanted`` that the batch allows."""
    return min(max(wanted, batch.min), batch.max)


@dataclass(frozen=True)
class Floors:
    """Finds the floors of a network: from its original, rounded, or from its int8 graph in float32."""

    exported: Exported
    yardstick: Yardstick
    batch: Batch

    def half(self, kind: HalfType) -> Decibels:
        """Return what rounding every tensor to a half type leaves, by batch size and output."""
        size = within(_ROWS, self.batch)
        few = {name: rows(array, size) for name, array in self.yardstick.inputs.items()}
        return noise_floors(self.exported.run, few, self._exact(size), kind, list(self.yardstick.answers))

    def float32(self) -> Needed:
        """Return the floors of float32 from a half type that can carry the network: FP16, or BF16 for its range."""
        half = self.half("fp16")
        if carries(half):
            return self.gained(half, "fp16")
        return self.gained(self.half("bf16"), "bf16")

    def gained(self, half: Decibels, kind: HalfType) -> Needed:
        """Return the floors of float32 from those of a half type."""
        words = f"{kind} rounding of the original, float32's bits gained, sums lost"
        graph = self.exported.graph
        return {size: [(float32_floor(floor, kind, graph), words) for floor in floors] for size, floors in half.items()}

    def int8(self, graph: "ModelProto", outputs: list[str], referee: Referee) -> Needed:
        """Ask the graph that is int8 in float32: what it keeps of the answers, a cast of the rest must keep too.

        Raises:
            ExportError: that is too little to mean anything.
        """
        size = within(max(len(array) for array in self.yardstick.inputs.values()), self.batch)
        asked = referee.answers(graph.SerializeToString(), outputs, [size], optimise="float")
        pairs = [*zip(self._exact(size), asked.by_batch[size].result(), strict=True)]
        whole = min(worst_sqnr(true, got, size) for true, got in pairs)
        if whole < LEAST_INT8_DB:
            raise ExportError(
                f"int8 cannot carry this network as it is: it keeps {whole:.1f} dB of the answers to the held-out "
                f"images, {LEAST_INT8_DB:.0f} are the least that means anything. Try --quality high, --fp16-share "
                "10%, more --calib-images, or --fp16."
            )
        return {
            batch: [(worst_sqnr(true, got, batch), "int8 rounding, in float32") for true, got in pairs]
            for batch in self.yardstick.answers
        }

    def _exact(self, size: int) -> list[Array]:
        return [*(self.yardstick.answers.get(size) or [rows(output, size) for output in self.yardstick.reference])]


def carries(floors: Decibels) -> bool:
    """Tell whether enough is left of all rows' answers; those of the worst few alone do not decide."""
    return all(floor >= LEAST_DB for floor in floors[max(floors)])


def check_carried(floors: Decibels, kind: HalfType) -> None:
    """Hold the floors of a half type to what means anything.

    Raises:
        ExportError: with what is left.
    """
    if not carries(floors):
        raise ExportError(
            f"{kind} cannot carry this network: rounding every tensor to it keeps {min(floors[max(floors)]):.1f} dB of "
            f"its answers, {LEAST_DB:.0f} are the least that means anything. Use "
            f"{'--bf16 or ' if kind == 'fp16' else ''}--fp32."
        )
