"""Choose ranges for the whole network, by the SQNR of its answers on images that no range was read from.

Never tensor by tensor: which ranges serve one tensor best on a few images is mostly chance, and the choices of fifty
tensors add up to a loss. Neither min-max nor MSE is safe for every network; the choice between them is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engineworks.calibration.graph import Floats
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ExportError


@dataclass(frozen=True)
class Choice:
    """The ranges chosen and every candidate's SQNR in decibels."""

    method: str
    sqnr_db: Mapping[str, float]


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
    figures = {name: sqnr(reference, answer(name)) for name in candidates}
    return Choice(max(figures, key=lambda name: figures[name]), figures)
