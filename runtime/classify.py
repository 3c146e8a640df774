"""From a classifier's scores to the classes of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.compare import order
from engineworks.runtime.errors import BackendError, InputError
from engineworks.runtime.manifest import Scores

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """One class of one picture: its label, its index, and its share of the probability, in [0, 1]."""

    label: str
    index: int
    probability: float


def softmax(scores_of: Array, scores: Scores = "logits") -> npt.NDArray[np.float64]:
    """Turn the scores of a classifier into probabilities, row by row.

    Args:
        scores_of: ``(N, K)``, any real dtype; N pictures, K classes.
        scores: ``logits``, or ``distances`` whose negatives are then taken (LeCun et al. 1998, equation 9).

    Returns:
        ``(N, K)`` float64 in [0, 1]; each row sums to 1.

    Raises:
        InputError: ``scores_of`` is not two-dimensional.
    """
    if scores_of.ndim != 2:
        raise InputError(f"softmax: expected (N, K), got {scores_of.shape}. Add a batch axis: x[None].")
    values = np.asarray(scores_of, np.float64) * (-1 if scores == "distances" else 1)
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def predictions(row: Array, k: int, scores: Scores, labels: Sequence[str], bundle: str) -> list[Prediction]:
    """Return the k best classes of one row of scores, best first.

    Args:
        row: ``(K,)`` scores of one picture.
        k: how many; at most as many as there are.
        scores: what they are.
        labels: the names of the classes; one without a name goes by its number.
        bundle: its name, for messages.

    Raises:
        BackendError: the scores hold NaN or infinity, of which no probability can be made.
    """
    if not np.isfinite(row).all():
        raise BackendError(f"bundle {bundle}: the network answered NaN or infinity to this picture.")
    probabilities = softmax(row[None], scores)[0]
    best = (int(index) for index in order(row[None], scores)[0, :k])
    return [Prediction(label_of(index, labels), index, float(probabilities[index])) for index in best]


def label_of(index: int, labels: Sequence[str]) -> str:
    """Return the name of a class, or its number where it has none."""
    return labels[index] if index < len(labels) else str(index)
