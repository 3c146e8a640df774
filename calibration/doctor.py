"""The data doctor: are these images what the network was trained on, prepared as it wants them?

Two witnesses. The inputs themselves, against the recipe that should have made them: values that no picture gives, no
pixel darker than the mean, no colour. And the network's own batch norms, which kept the mean and the variance that
each channel had in training: the first layers are run on the inputs as they are, and again after each mend (swap the
channels, normalise once more, undo it, ...). The mend that brings the channels much nearer to what training saw names
the fault.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.calibration.observe import expose
from engineworks.calibration.pixels import Finding, Norm, levels, normal, others, witness, words_of
from engineworks.runtime.errors import InputError
from engineworks.runtime.preprocessing import Preprocessing

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Expected = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
MOST_IMAGES = 24  # the statistics of first layers settle early, and each image is run once for each mend
_CAP = 50.0  # a channel's divergence counts no more than this, so that one dead channel does not decide
_DEAD = 1e-6  # of the largest variance: a channel that training left without signal
# Measured on the first two batch norms of trained EfficientNet-Lite0 and -Lite2, 300 random subsets each of 8, 16 and
# 24 of 31 photographs: a mend of right pictures leaves 0.80 of the divergence or more (1.03 from 16 on); of swapped
# channels 0.25 to 0.92 (0.60 at most from 16 on), of inverted ones 0.16 to 0.68, of a wrong normalisation 0.01 to 0.17.
_BETTER, _BETTER_SWAP, _BETTER_INK = 0.4, 0.7, 0.6
_LEAST = 0.02  # nats by which a mend must help
_UNLIKE = 0.06  # the second layer's median: up to 0.058 with 8 right pictures, 0.017 with 24; blurred 0.04 to 0.17


def examine(
    inputs: Iterable[Mapping[str, Array]],
    recipe: Preprocessing,
    *,
    model: "ModelProto | bytes | None" = None,
    expected: Expected | None = None,
) -> tuple[Finding, ...]:
    """Look for faults of calibration images; empty where none is found.

    Args:
        inputs: rows as the network gets them; the first 24 are looked at. One input, ``(n, C, H, W)`` float32 with C
            of 1 or 3.
        recipe: how pictures become this input: which values black and white have.
        model: the float32 graph; with ``expected``, its first layers are run.
        expected: tensor name → (mean, variance), each ``(C,)``, as training saw them. Give the outputs of the first
            one or two convolutions that a batch norm followed. Where it is folded into the convolution, as in the
            graphs of ``export_graph``, mean is the batch norm's bias (β) and variance γ² · v / (v + ε); where it is
            not, they are its running mean and running variance v.

    Raises:
        InputError: an input that is no batch of pictures, or none.
        ExportError: ``expected`` names a tensor that the graph does not have.

    Where the inputs themselves show a fault, the network is not asked; see ``Finding`` for the faults' names.
    """
    name, x = _batch(inputs)
    found = witness(x, recipe)
    if found or model is None or not expected:
        return found
    return tuple(_by_batch_norm((name, x), recipe, model, expected))


def _batch(inputs: Iterable[Mapping[str, Array]]) -> tuple[str, Floats]:
    rows: list[Floats] = []
    name = ""
    for row in islice(inputs, MOST_IMAGES):
        if len(row) != 1:
            raise InputError(f"data doctor: expected one input of pictures, got {', '.join(row) or 'none'}.")
        name, array = next(iter(row.items()))
        if array.ndim != 4 or array.shape[1] not in {1, 3} or array.dtype != np.float32:
            raise InputError(f"data doctor: expected float32 (n, 1 or 3, H, W), got {array.dtype} {array.shape}.")
        rows.append(np.asarray(array, np.float32))
    if not rows:
        raise InputError("data doctor: expected at least one image, got none.")
    if len({row.shape[1:] for row in rows}) > 1:
        raise InputError("data doctor: expected images of one size.")
    return name, np.concatenate(rows)[:MOST_IMAGES]


@dataclass(frozen=True)
class _Mend:
    """A fault, what undoes it, how it is told, and the share of the divergence that must be left for it to count."""

    fault: str
    words: str
    undo: Callable[[Floats], Floats]
    most_left: float


def _mends(recipe: Preprocessing) -> list[_Mend]:
    ours = (recipe.mean, recipe.std)
    swap = _Mend(
        "swapped-channels",
        "their channels are swapped (RGB against BGR)",
        lambda x: normal(levels(x, ours)[:, ::-1], *ours),
        _BETTER_SWAP,
    )
    return [
        *([swap] if len(recipe.mean) == 3 else []),
        _Mend("unnormalised", "they are normalised once more", lambda x: normal(x, *ours), _BETTER),
        _Mend("normalised-twice", "one normalisation is undone", lambda x: levels(x, ours), _BETTER),
        _Mend("unscaled", "they are brought from 0…255 to 0…1", lambda x: normal(x / np.float32(255), *ours), _BETTER),
        _Mend(
            "unscaled",
            "they are divided by 255 before",
            lambda x: normal(levels(x, ours) / np.float32(255), *ours),
            _BETTER,
        ),
        _Mend("unscaled", "they are brought to 0…255", lambda x: levels(x, ours) * 255, _BETTER),
        _Mend("inverted", "black and white are exchanged", lambda x: normal(1 - levels(x, ours), *ours), _BETTER_INK),
        *(_otherwise(one, two) for kind in others(ours) for one, two in ((ours, kind), (kind, ours))),
    ]


def _otherwise(made: Norm, wanted: Norm) -> _Mend:
    words = (
        f"instead of mean {words_of(made[0])} and standard deviation {words_of(made[1])}, {words_of(wanted[0])} and "
    )
    return _Mend(
        "normalised-otherwise",
        f"{words}{words_of(wanted[1])} are applied",
        lambda x: normal(levels(x, made), *wanted),
        _BETTER,
    )


def _by_batch_norm(
    named: tuple[str, Floats], recipe: Preprocessing, model: "ModelProto | bytes", expected: Expected
) -> list[Finding]:
    name, x = named
    run = expose(model, list(expected))

    def diagnose(batch: Floats) -> list[Doubles]:
        rows = ({name: np.ascontiguousarray(row[None])} for row in batch)
        return divergences((run(row) for row in rows), list(expected.values()))

    now = diagnose(x)
    before = _total(now)
    tried = [(diagnose(mend.undo(x)), mend) for mend in _mends(recipe)]
    mended, best = min(tried, key=lambda pair: _total(pair[0]))
    after = _total(mended)
    if after < best.most_left * before and before - after > _LEAST and _healthy(mended):
        return [
            Finding(
                best.fault,
                f"The first layers see other values than in training (divergence {before:.2f}); if {best.words}, it "
                f"falls to {after:.2f}. Check how the images are prepared.",
            )
        ]
    return [] if _healthy(now) else [_unlike(now)]


def _unlike(now: list[Doubles]) -> Finding:
    return Finding(
        "unlike",
        f"The first layers see other values than in training (median divergence {np.median(now[-1]):.2f}, {_UNLIKE} is "
        "usual), and neither normalisation nor colour explains it: check size, crop and sharpness (enlarged "
        "thumbnails, a crop out of a large picture), or whether the subject is another one.",
    )


def _healthy(layers: list[Doubles]) -> bool:
    """Tell by the second layer; the first alone differs too much between sets of right pictures."""
    return len(layers) < 2 or float(np.median(layers[1])) <= _UNLIKE


def _total(layers: list[Doubles]) -> float:
    return float(sum(layer.mean() for layer in layers))


def divergences(
    rows: Iterable[Sequence[Array]], expected: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]
) -> list[Doubles]:
    """Compare what channels hold with what training saw.

    Args:
        rows: for each image, one tensor ``(1, C, H, W)`` for each entry of ``expected``.
        expected: (mean, variance), each ``(C,)``.

    Returns:
        for each tensor ``(channels,)`` float64, up to 50: the Kullback-Leibler divergence of a normal distribution
        with the measured mean and variance from that of training, in nats; channels that training left without signal
        are left out. 0 is equal; 0.5 is a shift by one standard deviation.
    """
    moments: list[Any] = [0.0] * len(expected)
    count = 0
    for row in rows:
        count += 1
        for index, value in enumerate(row):
            plane = np.asarray(value, np.float64).reshape(value.shape[1], -1)
            moments[index] = moments[index] + np.stack([plane.mean(axis=1), (plane**2).mean(axis=1)])
    return [_divergence(moment / count, *pair) for moment, pair in zip(moments, expected, strict=True)]


def _divergence(moments: Doubles, mean: npt.ArrayLike, variance: npt.ArrayLike) -> Doubles:
    expected_mean, expected_variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    alive = expected_variance > _DEAD * expected_variance.max()
    found: Doubles = moments[1] - moments[0] ** 2
    ratio = np.maximum(found[alive] / expected_variance[alive], np.finfo(np.float64).tiny)
    shift = (moments[0] - expected_mean)[alive] ** 2 / expected_variance[alive]
    divergence: Doubles = np.minimum((ratio + shift - 1 - np.log(ratio)) / 2, _CAP)
    return divergence
