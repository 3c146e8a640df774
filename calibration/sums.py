"""Sums that come out the same, bit for bit, in whatever order their terms are added.

A float32 is a whole number of 24 bits times a power of two. Each is shifted to the next lower multiple of 16 binary
places and added to one of twenty int64 accumulators, one for each multiple: whole numbers lose nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
_DIGITS = 24  # of float32's significand (IEEE 754-2019, table 3.5)
_STEP = 16  # binary places between two accumulators: 24 + 15 bits are used of 63, which leaves 2**24 terms
_LOWEST = -176  # the exponent of the first accumulator: a multiple of 16 below that of the smallest denormal's last bit
_ACCUMULATORS = 20  # up to 2**144: sums of a whole plane of float32's largest


@dataclass(eq=False)
class ExactSums:
    """One running sum for each of C channels, exact for terms of 24 bits.

    ``accumulators`` is ``(20, C)`` int64: the sum is accumulators[j] · 2**(16 · j − 176), added up over j.
    """

    accumulators: npt.NDArray[np.int64]

    @classmethod
    def of(cls, channels: int) -> "ExactSums":
        """Return sums of nothing."""
        return cls(np.zeros((_ACCUMULATORS, channels), np.int64))

    def add(self, terms: npt.NDArray[np.floating]) -> None:
        """Add one finite term ``(C,)`` to each sum, rounded to float32's 24 bits first; at most 2**24 times."""
        fraction, exponent = np.frexp(terms.astype(np.float64, copy=False))
        whole = np.rint(np.ldexp(fraction, _DIGITS)).astype(np.int64)
        place = np.maximum(exponent.astype(np.int64) - _DIGITS - _LOWEST, 0)
        self.accumulators[place // _STEP, np.arange(terms.size)] += whole << (place % _STEP)

    def merge(self, other: "ExactSums") -> "ExactSums":
        """Return the sums over both parts' terms."""
        return ExactSums(self.accumulators + other.accumulators)

    @property
    def values(self) -> Doubles:
        """The sums ``(C,)`` in float64, from the largest accumulator down."""
        powers = np.ldexp(1.0, _LOWEST + _STEP * np.arange(_ACCUMULATORS))
        total = np.zeros(self.accumulators.shape[1])
        for whole, power in zip(self.accumulators[::-1], powers[::-1], strict=True):
            total += whole.astype(np.float64) * power
        return total
