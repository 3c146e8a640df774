"""What a network's inputs tell of how they were made: values that no picture gives, and pictures without colour."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engineworks.runtime.preprocessing import Preprocessing

Floats = npt.NDArray[np.float32]
Norm = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation, in the range 0…1
_SLACK = 0.02  # of the range 0…1: rounding, and what a resampling filter overshoots
_SAME = 1.5 / 255  # channels this near are equal but for rounding
_FLAT = 0.1  # a picture of a smaller range, such as a night, shows no colour either
_OTHER = 0.05  # means or standard deviations further apart than this make another normalisation
_USUAL: tuple[Norm, ...] = (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3))


@dataclass(frozen=True)
class Finding:
    """One fault: a short name for programs, and a sentence with its evidence and what to do.

    ``fault`` is one of: ``values`` (outside what a picture gives), ``unscaled`` (0 to 255), ``unnormalised``,
    ``normalised-twice``, ``normalised-otherwise``, ``swapped-channels``, ``inverted``, ``grey``, ``constant``, or
    ``unlike`` (unlike the training images for none of these reasons: size, crop, sharpness, subject).
    """

    fault: str
    sentence: str


def witness(x: Floats, recipe: Preprocessing) -> tuple[Finding, ...]:
    """Compare inputs with what the recipe makes of black and white; empty where they agree.

    Args:
        x: ``(N, C, H, W)`` float32, N images of C channels, 1 or 3.
        recipe: what should have made them.
    """
    if not np.isfinite(x).all():
        held = "NaN" if np.isnan(x).any() else "infinities"
        return (Finding("values", f"The inputs hold {held}. Mend what makes them."),)
    if x.min() == x.max():
        return (Finding("constant", f"Every value of every image is {x.min():.4g}. These are no pictures."),)
    level = levels(x, (recipe.mean, recipe.std))
    found = _bare(x, level, recipe) if _unit(level) else next(_explanations(x, level, recipe))
    return tuple(finding for finding in (found, _grey(level)) if finding is not None)


def _bare(x: Floats, level: Floats, recipe: Preprocessing) -> Finding | None:
    """Tell a normalisation left out: nothing is below 0, where the recipe puts all that is darker than the mean."""
    if len(x) < 2 or max(recipe.mean) <= 0 or x.min() < 0 or x.max() > 1 + _SLACK:
        return None
    return Finding(
        "unnormalised",
        f"All values lie in 0…1 and no pixel of {len(x)} images is darker than the mean: mean {words_of(recipe.mean)} "
        f"and standard deviation {words_of(recipe.std)} were not applied.",
    )


def _explanations(x: Floats, level: Floats, recipe: Preprocessing) -> Iterator[Finding]:
    """Yield what would explain values that no picture gives, the surest first; the last always holds."""
    ours = (recipe.mean, recipe.std)
    reach = f"The values reach from {x.min():.4g} to {x.max():.4g}"
    if x.min() >= 0 and 2 < x.max() <= 256:
        yield Finding("unscaled", f"{reach}: divide by 255, then normalise them.")
    if level.min() >= -_SLACK and 2 < level.max() <= 256:
        yield Finding("unscaled", f"{reach}, as pixels of 0 to 255 give that were normalised but not divided by 255.")
    if _unit(levels(level, ours)):
        yield Finding("normalised-twice", f"{reach}, as a picture gives that was normalised twice. Leave one out.")
    for kind in others(ours):
        if _unit(levels(x, kind)):
            yield Finding(
                "normalised-otherwise",
                f"{reach}, as mean {words_of(kind[0])} and standard deviation {words_of(kind[1])} give; this network's "
                f"are {words_of(ours[0])} and {words_of(ours[1])}.",
            )
    black, white = ([(end - m) / s for m, s in zip(*ours, strict=True)] for end in (0, 1))
    yield Finding(
        "values",
        f"{reach}; this network's preprocessing gives {min(black + white):.4g} to {max(black + white):.4g}. "
        "Prepare them as it says.",
    )


def _grey(level: Floats) -> Finding | None:
    """Tell grey pictures given to a network that sees colour."""
    if level.shape[1] != 3:
        return None
    flat = np.ptp(level, axis=(1, 2, 3)) <= _FLAT
    grey = int(((np.ptp(level, axis=1).max(axis=(1, 2)) <= _SAME) & ~flat).sum())
    if grey * 2 <= len(level):
        return None
    return Finding(
        "grey",
        f"{grey} of {len(level)} images are grey: all three channels are equal. A network trained on colour has other "
        "ranges on them; calibrate on what it will be given.",
    )


def levels(x: Floats, made: Norm) -> Floats:
    """Undo a normalisation: back to 0…1 where it was applied once."""
    shift, scale = _planes(made, x.shape[1])
    return np.asarray(x * scale + shift, np.float32)


def normal(level: Floats, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Apply a normalisation to values of 0…1."""
    shift, scale = _planes((mean, std), level.shape[1])
    return np.asarray((level - shift) / scale, np.float32)


def _planes(norm: Norm, channels: int) -> tuple[Floats, Floats]:
    mean, std = (np.array(values, np.float32)[:channels, None, None] for values in norm)
    return mean, std


def others(ours: Norm) -> list[Norm]:
    """Return the usual normalisations that differ from ours; of grey pictures the first channel decides."""
    return [
        kind
        for kind in _USUAL
        if any(abs(a - b) > _OTHER for one, two in zip(kind, ours, strict=True) for a, b in zip(one, two, strict=False))
    ]


def words_of(values: Sequence[float]) -> str:
    """Write numbers as a sentence has them."""
    return ", ".join(f"{value:.3g}" for value in values)


def _unit(level: Floats) -> bool:
    return bool(level.min() >= -_SLACK and level.max() <= 1 + _SLACK)
