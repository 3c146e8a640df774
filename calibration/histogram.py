"""How often each magnitude occurs in a tensor: a histogram of fixed size whose range grows by doubling.

The width of a bin is always a power of two, so that assigning a float32 to its bin, widening (two bins become one) and
merging are exact: what is counted depends on the values alone, not on their order or grouping.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 4096
_BITS = 12  # BINS is 2**_BITS
_FINEST = -126  # of the exponents: float32 has normal numbers from 2**-126 on, and its denormals share bin 0
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


@dataclass(eq=False)
class Histogram:
    """Counts of the magnitudes of one tensor.

    Attributes:
        counts: ``(4096,)`` int64; bin i counts the values with i · width ≤ abs(x) < (i + 1) · width, exact zeros not
            among them. The range ends at less than twice the largest magnitude seen.
        exponent: the width of a bin is 2 to this power.
        zeros: how many values are exactly 0; after a ReLU these are often the half, and every scale holds them exactly.
    """

    counts: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int = _FINEST
    zeros: int = 0

    @property
    def width(self) -> float:
        """The width of a bin, a power of two."""
        return 2.0**self.exponent

    @property
    def total(self) -> int:
        """How many values were counted, zeros among them."""
        return int(self.counts.sum()) + self.zeros

    def reach(self, largest: float) -> None:
        """Widen the range until it holds the finite magnitude ``largest``; never narrows it."""
        exponent = int(np.frexp(largest)[1]) - _BITS if largest else _FINEST
        if exponent > self.exponent:
            self.counts = _widened(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def add(self, magnitudes: Floats) -> None:
        """Count float32 values of 0 or more that are within the range which ``reach`` set."""
        index = np.multiply(magnitudes, np.float32(2.0**-self.exponent)).astype(np.intp)
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
        self.counts += np.bincount(index, minlength=BINS)
        self.counts[0] -= zeros
        self.zeros += zeros

    def merge(self, other: "Histogram") -> "Histogram":
        """Return the histogram that both parts' values would have made in one."""
        exponent = max(self.exponent, other.exponent)
        counts = [_widened(part.counts, exponent - part.exponent) for part in (self, other)]
        return Histogram(counts[0] + counts[1], exponent, self.zeros + other.zeros)


def _widened(counts: Counts, doublings: int) -> Counts:
    """Join 2**doublings neighbouring bins into one; the upper bins become empty."""
    joined = counts.sum(keepdims=True) if doublings >= _BITS else counts.reshape(-1, 1 << doublings).sum(axis=1)
    return np.concatenate([joined, np.zeros(BINS - joined.size, np.int64)])
