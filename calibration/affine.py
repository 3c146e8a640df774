"""Sequential affine correction: for each output channel a gain, into the weights' scale, and an offset, into the bias.

Each layer is fitted on inputs that are already quantised and corrected, so that it takes back what the layers before
it did to the means and the spread of its channels. The offset alone is a trap: noise that a ReLU rectifies shrinks a
network's answers layer by layer, and only a gain undoes that.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engineworks.calibration.graph import Floats

Doubles = npt.NDArray[np.float64]
_GAINS = (0.5, 2.0)  # a fit beyond these is of noise, not of a layer


@dataclass
class Moments:
    """Sums over a layer's wanted and computed outputs, channel by channel, taken about a pilot mean.

    Add batches of ``(N, C, …)``; everything is accumulated in float64.
    """

    count: int = 0
    pilots: tuple[Floats, Floats] | None = None
    sums: Doubles = field(default_factory=lambda: np.zeros((5, 1)))

    def add(self, wanted: Floats, computed: Floats) -> None:
        """Add a batch: two ``(N, C, …)`` float32 arrays of one shape."""
        channels = wanted.shape[1]
        if self.pilots is None:
            axes = (0, *range(2, wanted.ndim))
            self.pilots = (wanted.mean(axis=axes), computed.mean(axis=axes))
            self.sums = np.zeros((5, channels))
        for first, second in zip(wanted, computed, strict=True):
            one = first.reshape(channels, -1) - self.pilots[0][:, None]
            two = second.reshape(channels, -1) - self.pilots[1][:, None]
            self.sums += [
                one.sum(axis=1), two.sum(axis=1), _dots(one, two), _dots(two, two), _dots(one, one),
            ]  # fmt: skip
            self.count += one.shape[1]

    @property
    def means(self) -> tuple[Doubles, Doubles]:
        """The means of the wanted and of the computed outputs, ``(C,)`` each."""
        assert self.pilots is not None
        first, second = self.sums[:2] / self.count
        return self.pilots[0] + first, self.pilots[1] + second

    @property
    def spread(self) -> tuple[Doubles, Doubles, Doubles]:
        """Covariance, variance of the computed, variance of the wanted outputs, ``(C,)`` each."""
        one, two, cross, twos, ones = self.sums / self.count
        return cross - one * two, twos - two * two, ones - one * one


@dataclass(frozen=True)
class Correction:
    """What a layer's sums are multiplied with and what is then added, ``(C,)`` each."""

    gain: Floats
    offset: Floats


def _dots(one: Floats, two: Floats) -> Doubles:
    found: Doubles = np.matmul(one[:, None, :], two[:, :, None])[:, 0, 0].astype(np.float64)
    return found


def fit(moments: Moments, *, offsets: bool = True) -> Correction:
    """Return the gain and offset of least squared error between wanted and computed outputs, channel by channel.

    Args:
        moments: of the outputs wanted, and of those that the quantised layer computes without any bias.
        offsets: False where the layer takes no bias: the gain alone is fitted.

    A channel that hardly varies, or whose best gain lies outside 0.5 to 2, keeps a gain of 1.
    """
    wanted, computed = moments.means
    cross, variance, _ = moments.spread
    if not offsets:
        cross, variance = cross + wanted * computed, variance + computed * computed
    gain = np.divide(cross, variance, out=np.ones_like(cross), where=variance > 0)
    gain = np.where((gain >= _GAINS[0]) & (gain <= _GAINS[1]), gain, 1.0)
    offset = wanted - gain * computed if offsets else np.zeros_like(gain)
    return Correction(gain.astype(np.float32), offset.astype(np.float32))


def error(moments: Moments, correction: Correction) -> Doubles:
    """Return the mean squared error of each channel after a correction, ``(C,)``."""
    wanted, computed = moments.means
    cross, variance, own = moments.spread
    gain = correction.gain.astype(np.float64)
    shift = wanted - gain * computed - correction.offset
    return np.maximum(own - 2 * gain * cross + gain**2 * variance, 0) + shift**2
