"""How well two outputs agree: the figures in every manifest, with numpy alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engineworks.runtime.errors import InputError
from engineworks.runtime.manifest import Scores

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Agreement:
    """Figures of one comparison; see ``agreement`` for what each is."""

    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float
    top1: float
    top5: float


def agreement(reference: Floats, candidate: Floats, scores: Scores = "logits") -> Agreement:
    """Compare an output with the one it should equal.

    Args:
        reference: ``(N, …)``; N rows. Computed in float64 whatever the dtype.
        candidate: the same shape.
        scores: whether the highest value of a row wins (``logits``) or the lowest (``distances``).

    Returns:
        ``max_abs``, the largest difference; ``max_rel``, that over the largest magnitude of the reference;
        ``cosine`` of the two as vectors; ``sqnr_db``, the signal-to-quantisation-noise ratio in decibels, infinite
        where they are equal; ``top1``, the share of rows with the same winner; ``top5``, the share of rows whose
        reference winner is among the candidate's first five. A value that is not finite in the candidate gives
        −inf decibels and an infinite ``max_abs``.

    Raises:
        InputError: the shapes differ, or the reference is empty or not finite.
    """
    if reference.shape != candidate.shape or reference.size == 0 or reference.ndim == 0:
        raise InputError(f"agreement: expected two arrays of one shape, got {reference.shape} and {candidate.shape}.")
    signal, other = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(signal).all():
        raise InputError("agreement: the reference holds values that are not finite; nothing can be compared with it.")
    if not np.isfinite(other).all():
        return Agreement(np.inf, np.inf, 0.0, -np.inf, 0.0, 0.0)
    noise = np.abs(signal - other)
    peak = float(np.abs(signal).max())
    top1, top5 = _top(signal, other, scores)
    return Agreement(
        max_abs=float(noise.max()),
        max_rel=float(noise.max()) / peak if peak else float(noise.max()),
        cosine=_cosine(signal.ravel(), other.ravel()),
        sqnr_db=sqnr(signal, other),
        top1=top1,
        top5=top5,
    )


def sqnr(signal: Floats, other: Floats) -> float:
    """Return 10·log10 of the signal's power over the difference's, in decibels; infinite where they are equal."""
    power = float(np.square(signal, dtype=np.float64).sum())
    noise = float(np.square(signal.astype(np.float64) - other).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power else float("-inf")


def order(scores_of: Floats, scores: Scores) -> npt.NDArray[np.intp]:
    """Return the classes of each row from best to worst; equal values keep the lower class first."""
    values = scores_of.astype(np.float64)  # a minus sign would wrap in an unsigned type
    return np.argsort(values if scores == "distances" else -values, axis=-1, kind="stable")


def _top(signal: Floats, other: Floats, scores: Scores) -> tuple[float, float]:
    rows = signal.reshape(len(signal), -1), other.reshape(len(other), -1)
    best, ranked = order(rows[0], scores)[:, :1], order(rows[1], scores)[:, :5]
    return float((ranked[:, :1] == best).mean()), float((ranked == best).any(axis=1).mean())


def _cosine(first: Floats, second: Floats) -> float:
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else float(not first.any() and not second.any())
