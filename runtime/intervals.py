"""How far a measured share can be trusted: an interval for one, an exact test for two on the same pictures."""

import math

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_RARE = 16.0  # one in e¹⁶, nine million, is beyond


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, JASA 22, 1927; the score interval).

    Args:
        right: how many of them; 0 to ``total``.
        total: 1 or more.

    Returns:
        The lower and the upper end, in [0, 1]. It covers well for few trials and for shares near 0 or 1, too.
    """
    share, z2 = right / total, _Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return (0.0 if right == 0 else max(centre - half, 0.0)), (1.0 if right == total else min(centre + half, 1.0))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test for two classifiers on the same pictures.

    Args:
        only_first: pictures that the first alone got right.
        only_second: pictures that the second alone got right.

    Returns:
        How likely a split at least this uneven is where both are equally good: twice the binomial tail at one half,
        at most 1 (McNemar, Psychometrika 12, 1947, in its exact form). Pictures on which both agree say nothing.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, number) for number in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**total)) if total < 1000 else min(1.0, _tail_by_logarithms(total, fewer))


def _tail_by_logarithms(total: int, fewer: int) -> float:
    """Sum the same tail where its terms are too long to be written out."""
    logs = [
        math.lgamma(total + 1) - math.lgamma(number + 1) - math.lgamma(total - number + 1)
        for number in range(fewer + 1)
    ]
    largest = max(logs)
    total_log = largest + math.log(sum(math.exp(value - largest) for value in logs)) + (1 - total) * math.log(2)
    return math.exp(min(total_log, 0.0))


def paired_difference(lost: int, gained: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a fall in a share, both shares taken of the same pictures (Tango's score interval).

    Args:
        lost: pictures that the first alone got right; 0 or more.
        gained: pictures that the second alone got right; 0 or more.
        total: all pictures, those on which both agree among them; 1 or more.

    Returns:
        The lower and the upper end of (lost − gained) / total, in [−1, 1].

    The ends are the falls that a score test of the pairs would just not refuse (Tango, Statistics in Medicine 17, 1998,
    page 891). It holds for few pairs, where the usual interval has no width at all: n pictures without a change still
    leave z² / (n + z²). Where nothing is gained the upper end is that of ``wilson`` for the share that was lost.
    """
    return -_upper_end(gained, lost, total), _upper_end(lost, gained, total)


def _upper_end(lost: int, gained: int, total: int) -> float:
    """Find the largest fall that the score test does not refuse, by halving: its statistic falls all the way."""
    low, high = (lost - gained) / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(lost, gained, total, middle) > -_Z95 else (low, middle)
    return high


def _score(lost: int, gained: int, total: int, fall: float) -> float:
    """Return how many standard errors the fall that was seen lies above a supposed one, 0 or less if it lies below.

    ``gain`` is the likeliest share of gained pictures under that fall: the root of a quadratic (Tango, equation 10).
    """
    square = 2 * total
    slope = (2 * total - lost + gained) * fall - lost - gained
    constant = -gained * fall * (1 - fall)
    gain = (math.sqrt(max(slope**2 - 4 * square * constant, 0.0)) - slope) / (2 * square)
    variance = total * (2 * gain + fall * (1 - fall))
    seen = lost - gained - total * fall
    return seen / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, seen) if seen else 0.0


def chance(count: int) -> float:
    """Return by how much a mean of so many squares may exceed what is expected, in amplitude, but for rare chance.

    For n independent normal errors the sum of squares is below n + 2√(nx) + 2x, but with probability e⁻ˣ (Laurent and
    Massart, Annals of Statistics 28, 2000, lemma 1).
    """
    return math.sqrt(1 + 2 * math.sqrt(_RARE / count) + 2 * _RARE / count)
