"""Choose ranges for the whole network, by the SQNR of its answers on images that no fit has seen.

Never tensor by tensor: which ranges serve one tensor best on a few images is mostly chance, and the choices of fifty
tensors add up to a loss. Neither min-max nor MSE is safe for every network; the choice between them is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engineworks.calibration.graph import Floats
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ExportError

_MOST = 200.0  # decibels; a row that is answered exactly counts as so much


@dataclass(frozen=True)
class Choice:
    """The ranges chosen, and every candidate's ``typical_sqnr``."""

    method: str
    sqnr_db: Mapping[str, float]


def typical_sqnr(reference: Floats, answers: Floats) -> float:
    """Return the mean of the rows' SQNR in decibels: what a usual image meets.

    Args:
        reference: ``(N, …)`` float32, the float network's answers.
        answers: the same shape.

    The SQNR of all rows together is decided by its worst row: one odd image among 25 hides what serves the others.
    """
    rows = [sqnr(one, other) for one, other in zip(reference, answers, strict=True)]
    return float(np.mean(np.clip(rows, -_MOST, _MOST)))


def choose(candidates: Sequence[str], reference: Floats, answer: Callable[[str], Floats]) -> Choice:
    """Return the candidate whose network answers most like the reference.

    Args:
        candidates: names of ways to choose ranges, one at least; of equal ones the first wins.
        reference: the float network's answers on held-out images, ``(N, …)``.
        answer: the quantised network's answers on the same images, by name.

    Raises:
        ExportError: there is no candidate.
    """
    if not candidates:
        raise ExportError("calibration: expected one set of ranges at least, got none.")
    figures = {name: typical_sqnr(reference, answer(name)) for name in candidates}
    return Choice(max(figures, key=lambda name: figures[name]), figures)
