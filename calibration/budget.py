"""The accuracy budget: the fewest layers to leave in the float type so that answers stay as right as was asked.

A search over a callable: what quantises, runs and counts is handed in (``engineworks.export.budget``). Layers are left
out in the order of what the answers feel of them, so that their number alone is searched for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engineworks.runtime.intervals import paired_difference, wilson

_Z2 = 3.841458820694124  # the square of the normal distribution's 97.5 % quantile


class Stopped(Exception):  # no error: someone had enough
    """The search is to end with what it has."""


@dataclass(frozen=True)
class Drop:
    """How much less often a network is right than float32 is, on the same pictures.

    Attributes:
        lost: pictures that float32 alone answers right; without labels, those that the two answer differently.
        gained: pictures that float32 alone answers wrong; 0 without labels.
        total: all pictures, 1 or more.
        labelled: whether the pictures' classes are known. If not, the share of other answers stands for the drop, which
            is never larger.
    """

    lost: int
    gained: int
    total: int
    labelled: bool = True

    @property
    def points(self) -> float:
        """What was seen, in percentage points; below 0 where more was gained than lost."""
        return 100 * (self.lost - self.gained) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, in percentage points: of the paired difference, or of the share of other answers."""
        if self.labelled:
            low, high = paired_difference(self.lost, self.gained, self.total)
        else:
            low, high = wilson(self.lost, self.total)
        return 100 * low, 100 * high

    def within(self, allowed: float) -> bool:
        """Tell whether the drop is shown to be at most ``allowed`` points: by the upper end, never by the middle.

        That the drop seen is within a budget says little: half the time the true one is larger. The upper end is passed
        by the true drop once in 40 times (the rule of non-inferiority trials: ICH E9, 1998, section 3.3.2).
        """
        return self.interval[1] <= allowed


@dataclass(frozen=True)
class Trial:
    """One evaluation: how many layers were left out, and what that gave."""

    left_out: int
    drop: Drop


@dataclass(frozen=True)
class Search:
    """What a search found.

    ``met`` is the smallest number of layers that met the budget, or None; ``trials`` are in the order of evaluation;
    ``stopped`` says that it was cut off, so that fewer layers might do.
    """

    met: int | None
    trials: tuple[Trial, ...]
    stopped: bool = False

    @property
    def best(self) -> Trial:
        """The trial whose drop is surest to be small: what can be reached, where the budget is not met."""
        return min(self.trials, key=lambda trial: (trial.drop.interval[1], trial.left_out))


def least_pictures(allowed: float) -> int:
    """Return how many pictures it takes to show a drop of at most ``allowed`` points where not one answer changes.

    Args:
        allowed: percentage points, above 0 and at most 100.

    n pictures without a change leave z² / (n + z²), by Tango's interval as by Wilson's: fewer cannot show it, whatever
    the network.
    """
    share = allowed / 100
    guess = max(int(_Z2 * (1 - share) / share), 1)
    while not Drop(0, 0, guess).within(allowed):
        guess += 1
    return guess


def most_evaluations(layers: int) -> int:
    """Return how many evaluations a search over so many layers makes at most; 1 or more layers."""
    return 1 + (layers - 1).bit_length()


def search(
    layers: int,
    measure: Callable[[int], Drop],
    allowed: float,
    *,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Search:
    """Find the smallest number of layers whose leaving out keeps the drop within the budget, by halving.

    Args:
        layers: how many there are in int8, 1 or more.
        measure: quantises all but the first so many of an order, and counts; may raise ``Stopped``.
        allowed: percentage points that the upper end of the drop's interval may reach.
        on_trial: told of each evaluation.

    Returns:
        The smallest number that meets the budget, at least one layer staying int8: none at all is no int8 network.
        Where more layers left out never make the drop larger it is the smallest of all; where chance makes it do so, a
        number that meets the budget while one less was seen not to.
    """
    trials: list[Trial] = []
    fails, passes, stopped = -1, layers, False
    try:
        while passes - fails > 1:
            count = (fails + passes) // 2 if trials else 0
            trials.append(Trial(count, measure(count)))
            on_trial(trials[-1])
            if trials[-1].drop.within(allowed):
                passes = count
            else:
                fails = count
    except Stopped:
        stopped = True
    return Search(passes if passes < layers else None, tuple(trials), stopped)
