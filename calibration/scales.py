"""From statistics to scales: where to cut a tensor's range so that 127 steps on either side serve it best.

Symmetric int8, zero point 0: q = round(x / scale), clipped to ±127, scale = threshold / 127. Every method reads one
histogram of magnitudes, so that all of them together cost one pass over the images.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from engineworks.calibration.histogram import BINS, Histogram
from engineworks.calibration.observe import Statistics
from engineworks.runtime.errors import ExportError

Method = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENT = 99.99
LEVELS = 127  # the largest step of symmetric int8
SMALLEST_SCALE = 2.0**-126  # float32's smallest normal number: a scale of 0, or one flushed to it, divides by zero
_CANDIDATES = 128  # TensorRT's search begins here: fewer bins than levels leave nothing to quantise
_CHUNK = 256  # candidates at once: larger temporaries cost more in page faults than in arithmetic
Doubles = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.intp]
Number = TypeVar("Number", np.float64, np.intp)


def scales(statistics: Statistics, method: Method, *, percent: float = PERCENT) -> dict[str, float]:
    """Return tensor name → scale, each a float32 value of 2**-126 or more.

    Args:
        statistics: what ``observe`` found.
        method: ``minmax`` (nothing is clipped), ``percentile`` (so many magnitudes are not clipped), ``mse`` (the
            least squared error of rounding and clipping together), ``entropy`` (the least Kullback-Leibler divergence,
            TensorRT's search of 2017; for comparison with older engines: it clips ReLU networks too far).
        percent: for ``percentile``, above 0 and up to 100; 99.999 wants every element observed.

    Raises:
        ExportError: another method, or a percentage out of its range.

    A tensor that was 0 on every image gets a threshold of 1: nothing that was seen depends on it.
    """
    if method not in METHODS or not 0 < percent <= 100:
        known = ", ".join(METHODS)
        raise ExportError(
            f"calibration: expected a method of {known}, and a percentage in (0, 100]; got {method!r}, {percent}."
        )
    finders: Mapping[Method, Callable[[Histogram, float], float]] = {
        "minmax": lambda histogram, largest: largest,
        "percentile": lambda histogram, largest: percentile(histogram, largest, percent),
        "mse": mse,
        "entropy": entropy,
    }
    find = finders[method]
    return {name: _scale(find(t.histogram, t.largest), t.largest) for name, t in statistics.tensors.items()}


def _scale(threshold: float, largest: float) -> float:
    """Divide by 127 in float32; a threshold never exceeds what was seen."""
    if not largest:
        return float(np.float32(1 / LEVELS))
    return max(float(np.float32(min(threshold, largest) / LEVELS)), SMALLEST_SCALE)


def percentile(histogram: Histogram, largest: float, percent: float = PERCENT) -> float:
    """Return the end of the first bin up to which at least ``percent`` of all magnitudes lie, zeros counted.

    That is at most one bin, a 2,048th of the range, above the exact percentile. Where the percentile is an exact 0, as
    in a tensor of almost only zeros, it says nothing of the others, and the largest magnitude is returned.
    """
    wanted = int(np.ceil(histogram.total * percent / 100))
    if wanted <= histogram.zeros:
        return largest
    enough = int(np.searchsorted(histogram.zeros + np.cumsum(histogram.counts), wanted))
    return min((enough + 1) * histogram.width, largest)


def mse(histogram: Histogram, largest: float) -> float:
    """Return the threshold of the least mean squared error, of all ends of bins and the largest magnitude.

    A bin counts as its middle, exact zeros as no error. Over the levels j of step s, with x of level j between its
    borders, the sum of (x - js)² is the sum of x² - 2s Σ (sum of x from border j on) + s² Σ (2j - 1) (number of x from
    border j on): two look-ups for each border instead of a sum over all bins.
    """
    counts = histogram.counts.astype(np.float64)
    middles = np.arange(BINS) + 0.5
    beyond, beyond_sum = _suffix(counts), _suffix(counts * middles)
    ends = np.minimum(np.arange(1.0, _used(histogram) + 1), largest / histogram.width)
    ends = np.append(ends, largest / histogram.width)
    levels = np.arange(1, LEVELS + 1)
    errors = []
    for some in _chunks(ends):
        step = some / LEVELS
        borders = np.ceil((levels - 0.5) * step[:, None] - 0.5).astype(np.intp)  # the first bin that rounds to j
        errors.append(step**2 * (beyond[borders] @ (2.0 * levels - 1)) - 2 * step * beyond_sum[borders].sum(axis=1))
    return float(ends[np.argmin(np.concatenate(errors))]) * histogram.width


def entropy(histogram: Histogram, largest: float) -> float:
    """Return the threshold of the least Kullback-Leibler divergence between the magnitudes and their 128 levels.

    For each number of bins i from 128 on: P is the first i bins, all that lies beyond added to the last; Q spreads
    each of 128 levels evenly over those of its bins that are not empty (Migacz, 8-bit Inference with TensorRT, GTC
    2017; the threshold is (i + 0.5) bins). A last bin that is empty, with values beyond it, is no candidate: P has
    weight where Q has none. Exact zeros are left out, for every scale represents them. Prefix sums give each
    divergence in 128 look-ups instead of i.
    """
    used = _used(histogram)
    if used <= _CANDIDATES:
        return largest
    ends = np.arange(_CANDIDATES, used + 1)
    counts = histogram.counts.astype(np.float64)
    tables = _prefix(counts), _prefix(counts > 0), _prefix(_times_log(counts))
    found = np.concatenate([_divergences(counts, tables, some) for some in _chunks(ends)])
    return min((int(ends[np.argmin(found)]) + 0.5) * histogram.width, largest)


def _divergences(counts: Doubles, tables: tuple[Doubles, Doubles, Doubles], ends: Indexes) -> Doubles:
    """Return the divergence for each candidate, infinite where Q is 0 and P is not."""
    within, filled, self_terms = tables
    edges = -(np.arange(_CANDIDATES + 1) * -ends[:, None] // _CANDIDATES)  # ceil: bin b is of level floor(128 b / i)
    sums, places = np.diff(within[edges], axis=1), np.diff(filled[edges], axis=1)
    density = np.log(np.divide(sums, places, out=np.ones_like(sums), where=places > 0))
    total, last = within[-1], counts[ends - 1]
    beyond = total - within[ends]
    own = self_terms[ends] - _times_log(last) + _times_log(last + beyond)
    cross = (sums * density).sum(axis=1) + beyond * density[:, -1]
    kept = np.log(within[ends] / total, out=np.zeros(len(ends)), where=within[ends] > 0)
    return np.where((last == 0) & (beyond > 0), np.inf, (own - cross) / total + kept)


def _chunks(candidates: npt.NDArray[Number]) -> Iterator[npt.NDArray[Number]]:
    return (candidates[start : start + _CHUNK] for start in range(0, len(candidates), _CHUNK))


def _times_log(values: Doubles) -> Doubles:
    return values * np.log(values, out=np.zeros_like(values), where=values > 0)


def _prefix(values: npt.NDArray[np.generic]) -> Doubles:
    """Return ``(B + 1,)`` sums of the first 0, 1 … B values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _suffix(values: Doubles) -> Doubles:
    """Return ``(B + 1,)`` sums of all values, of those from the second on … of none."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _used(histogram: Histogram) -> int:
    """Return how many bins there are up to the last that is not empty."""
    filled = np.flatnonzero(histogram.counts)
    return int(filled[-1]) + 1 if filled.size else 0
