"""Hold a graph's outputs against the PyTorch original, at every batch size that was promised.

The least that passes is derived from the network itself (``reference.noise_floor``), never a constant: a tolerance
such as 1e-5 fails correct networks, and 1e-2 passes broken ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.export.original import PYTORCH, TITLES
from engineworks.export.probe import Probes, refuse
from engineworks.export.referee import Answers
from engineworks.runtime.compare import Agreement, agreement
from engineworks.runtime.errors import ParityError
from engineworks.runtime.manifest import Batch, Rung, Scores

Array = npt.NDArray[Any]
MARGIN_DB = 6.02  # twice the noise amplitude of the floor: one bit
_DIGITS = 3


@dataclass(frozen=True)
class Yardstick:
    """What the original answers: the samples, its outputs for them, its outputs by batch size, and how they rank.

    ``title`` is what the original is called: a key of ``original.TITLES``. ``probes`` are further inputs with its
    answers; None where they are not asked for.
    """

    inputs: Mapping[str, Array]
    reference: Sequence[Array]
    answers: Mapping[int, Sequence[Array]]
    scores: Scores
    title: str = PYTORCH
    probes: Probes | None = None


def batches(batch: Batch) -> list[int]:
    """Return the batch sizes at which every rung is compared: smallest, usual and largest."""
    return sorted({batch.min, batch.opt, batch.max})


def climb(
    answers: Answers,
    name: str,
    outputs: Sequence[str],
    yardstick: Yardstick,
    floors: Mapping[int, Sequence[tuple[float, str]]],
) -> tuple[Rung, ...]:
    """Compare what a graph answers at every batch size with what the original does, output by output.

    Args:
        answers: the graph's, by batch size, as they come.
        name: the rung's name, such as ``onnx-fp16``.
        outputs: the names of the graph's outputs, in the order of the original's.
        yardstick: what the original answers.
        floors: at each batch size, for each output, the decibels that a correct run keeps, and where that comes from.

    Raises:
        ParityError: an output at a batch size is further from the original than the floor and its margin allow.
        BackendError: the graph does not load or run.
    """
    rungs = []
    for batch, expected_all in yardstick.answers.items():
        results = answers.by_batch[batch].result()
        for output, expected, got, floor in zip(outputs, expected_all, results, floors[batch], strict=True):
            figures = agreement(expected, got, yardstick.scores)
            rung = _rung((name, yardstick.title), output, batch, figures, floor)
            _check(rung, figures, yardstick.probes)
            rungs.append(rung)
    found = answers.checked.result()
    if yardstick.probes is not None:
        refuse(yardstick.probes, found)
    return tuple(rungs)


def check_alive(answers: Sequence[Array]) -> None:
    """Refuse an original whose answers say nothing: not finite, or the same whatever the input.

    Raises:
        ParityError: nothing could be proven by comparing with it.
    """
    for output in answers:
        if not np.isfinite(output).all():
            raise ParityError("the PyTorch original itself answers NaN or infinity; its weights are broken.")
        if len(output) > 1 and all(np.array_equal(row, output[0]) for row in output[1:]):
            raise ParityError("the PyTorch original answers every input alike; no comparison could prove anything.")


def _check(rung: Rung, figures: Agreement, probes: Probes | None) -> None:
    if not figures.sqnr_db >= rung.required_db:
        raise ParityError(
            (probes and probes.mixed())
            or f"{rung.candidate}, batch {rung.batch}, output {rung.output}: {figures.sqnr_db:.1f} dB against "
            f"{TITLES[rung.reference]}, needs {rung.required_db:.1f} ({rung.floor}); largest difference "
            f"{figures.max_abs:.3g}, top-1 agrees on {figures.top1:.0%}. Nothing was written."
            f"{probes.blame() if probes else ''}"
        )


def _rung(names: tuple[str, str], output: str, batch: int, figures: Agreement, floor: tuple[float, str]) -> Rung:
    return Rung(
        candidate=names[0],
        reference=names[1],
        output=output,
        batch=batch,
        max_abs=_short(figures.max_abs),
        max_rel=_short(figures.max_rel),
        cosine=round(figures.cosine, 9),
        sqnr_db=None if figures.sqnr_db == np.inf else round(figures.sqnr_db, 1),
        top1=round(figures.top1, 4),
        top5=round(figures.top5, 4),
        required_db=round(min(floor[0], 300.0) - MARGIN_DB, 1),
        floor=floor[1],
    )


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
