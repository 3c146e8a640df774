"""Two bundles of one network held against each other, and both against the original, on inputs that one of them stores.

What they must reach follows from what each was proven to reach: errors against the same answers add up at the worst.
"""

import math
from dataclasses import dataclass

import numpy as np

from engineworks.runtime.backend import BackendSession, open_bundle_session
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.compare import Agreement, Floats, agreement
from engineworks.runtime.errors import BundleError
from engineworks.runtime.manifest import Manifest
from engineworks.runtime.parity import flips_of, lost_to_tf32, rungs_of, stored_reference
from engineworks.runtime.protocol import Array, Device


@dataclass(frozen=True)
class Pair:
    """One output of both bundles.

    Attributes:
        output: its name.
        rows: how many inputs were answered.
        originals: the figures of the first and of the second against the original.
        figures: of the second against the first.
        required_db: the least that passes; None where the bundles do not come of one original.
        flips: of each row with another winner, how far it stood out, and how large the difference is.
    """

    output: str
    rows: int
    originals: tuple[Agreement, Agreement]
    figures: Agreement
    required_db: float | None
    flips: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the figures reach what is required; without a common original nothing is."""
        return self.required_db is None or self.figures.sqnr_db >= self.required_db


@dataclass(frozen=True)
class Against:
    """Two bundles on one host: what ran them, whose inputs they answered, and every output."""

    backends: tuple[str, str]
    inputs_of: str
    pairs: tuple[Pair, ...]

    @property
    def passed(self) -> bool:
        """Whether every output passes."""
        return all(pair.passed for pair in self.pairs)


def check_against(first: Bundle, second: Bundle, device: Device = "auto") -> Against:
    """Run two bundles on the same inputs and compare their answers.

    Args:
        first: the one to start from.
        second: another of a network with the same inputs and outputs.
        device: where both run.

    The inputs are those that the first stores; the second's where that alone is INT8, which is proven on images like
    those of its calibration and on no others.

    Raises:
        BundleError: other inputs or outputs, or a file that is damaged or holds no reference.
        BackendError: one of them does not run here.
    """
    _check_alike(first.manifest, second.manifest)
    int8 = [bundle.manifest.precision.asked == "int8" for bundle in (first, second)]
    source = second if int8 == [False, True] else first
    stored = stored_reference(source)
    one, two = (_asked(bundle, stored, device) for bundle in (first, second))
    pairs, alike = [], same_original(first.manifest, second.manifest)
    for tensor in first.manifest.outputs:
        truth: Floats = stored[f"output:{tensor.name}"].astype(np.float64)
        left, right, scores = one.answers[tensor.name], two.answers[tensor.name], first.manifest.scores
        pairs.append(
            Pair(
                tensor.name,
                len(truth),
                (agreement(truth, left, scores), agreement(truth, right, scores)),
                agreement(left, right, scores),
                least(one.least[tensor.name], two.least[tensor.name]) if alike else None,
                tuple(flips_of(left, right, scores)),
            )
        )
    return Against((one.backend, two.backend), source.manifest.name, tuple(pairs))


def same_original(first: Manifest, second: Manifest) -> bool:
    """Tell whether two bundles were made of the same network with the same weights."""
    return (first.model.name, first.weights) == (second.model.name, second.weights)


@dataclass(frozen=True)
class _Answers:
    """What one bundle answers, by output, and the least decibels that it was proven to keep of each."""

    backend: str
    answers: dict[str, Floats]
    least: dict[str, float]


def _check_alike(first: Manifest, second: Manifest) -> None:
    for what, ours, theirs in (("input", first.inputs, second.inputs), ("output", first.outputs, second.outputs)):
        mine, other = ([(t.name, t.dtype, t.shape[1:]) for t in tensors] for tensors in (ours, theirs))
        if mine != other:
            raise BundleError(
                f"bundles {first.name} and {second.name}: their {what}s differ: {_listed(mine)} and {_listed(other)}. "
                "Nothing can be compared."
            )


def _listed(tensors: list[tuple[str, str, tuple[int | str, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in tensors)


def _asked(bundle: Bundle, stored: dict[str, Array], device: Device) -> _Answers:
    session = open_bundle_session(bundle, device=device)
    try:
        names = [tensor.name for tensor in bundle.manifest.outputs]
        rungs, lost = rungs_of(bundle, session.backend.name), lost_to_tf32(bundle, session)
        least = {
            name: min(r.required_db for (output, _), r in rungs.items() if output == name) - lost for name in names
        }
        return _Answers(session.backend.name, _answers(bundle, session, stored, names), least)
    finally:
        session.close()


def _answers(bundle: Bundle, session: BackendSession, stored: dict[str, Array], names: list[str]) -> dict[str, Floats]:
    """Answer all rows, as many at once as the bundle takes; a last part too small for it is filled up with repeats."""
    batch, inputs = bundle.manifest.batch, {t.name: stored[f"input:{t.name}"] for t in bundle.manifest.inputs}
    count = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, count, batch.max):
        rows = min(batch.max, count - start)
        taken = start + np.arange(max(rows, batch.min)) % rows
        parts.append(
            [np.asarray(a, np.float64)[:rows] for a in session.run({n: x[taken] for n, x in inputs.items()}, names)]
        )
    return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}


def least(first_db: float, second_db: float) -> float:
    """Return the decibels that two answers to one question keep of each other, where each keeps so many of the truth.

    They are no further apart than both are from the truth together, and the first, which is now the signal, is smaller
    than the truth by its own error at the most (the triangle's inequality, twice).
    """
    one, two = (10 ** (-decibels / 20) for decibels in (first_db, second_db))
    return -20 * math.log10((one + two) / (1 - one)) if one < 1 else -math.inf
