"""From a float32 graph and some images to a Q/DQ graph whose answers stay close: every step measured, the best kept."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from engineworks.calibration.bias import correct_biases
from engineworks.calibration.choose import choose, typical_sqnr
from engineworks.calibration.correct import Options, correct
from engineworks.calibration.graph import Array, Floats
from engineworks.calibration.mixed import layer_costs, pick, sensitivity
from engineworks.calibration.parts import Quality, fixed_rows, grouped, rows_of, split
from engineworks.calibration.placement import Decision, Placement, place
from engineworks.calibration.qdq import insert_qdq
from engineworks.calibration.shift import Shifted, shift
from engineworks.calibration.walk import Batches, run_all
from engineworks.calibration.weights import Int8Layer, Rest
from engineworks.runtime.compare import agreement
from engineworks.runtime.errors import ExportError
from engineworks.runtime.trt_runtime import Flavour

if TYPE_CHECKING:
    from onnx import ModelProto

OnProgress = Callable[[str, int, int], None]
FP16_SHARE = 0.01
_SCANNED = 12  # images that the layers to leave out are found on


@dataclass(frozen=True)
class Destination:
    """What a Q/DQ graph is meant for.

    ``rest``: the type that computes where int8 does not; ``flavour``: the compiler that layers are chosen for.
    """

    rest: Rest = "fp16"
    flavour: Flavour = "tensorrt"


@dataclass(frozen=True)
class Measured:
    """What was observed of the tensors that ``place`` names: the candidates for ranges, and channel means.

    ``scales``: way of choosing ranges → tensor → step of the symmetric grid. ``means``: tensor → ``(C,)``.
    ``held_out``: inputs that were not observed; None where there are none.
    """

    scales: Mapping[str, Mapping[str, float]]
    means: Mapping[str, Array]
    held_out: Batches | None = None


@dataclass(frozen=True)
class Step:
    """One stage, and how the network then answered the held-out images, against float32.

    ``sqnr_db`` is of all answers together, ``typical_db`` the mean over the images, by which steps are compared.
    """

    name: str
    sqnr_db: float
    typical_db: float
    top1: float


@dataclass(frozen=True)
class Quantised:
    """A Q/DQ graph, and how it came about."""

    model: "ModelProto"
    """Float32 around int8; its scales are numbers that the type of the rest holds."""
    method: str
    scales: Mapping[str, float]
    decisions: tuple[Decision, ...]
    steps: tuple[Step, ...]
    kept: str
    """The name of the step whose graph this is."""
    left_out: tuple[str, ...]
    fp16_share: float
    """The share of the multiply-adds that was left out."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    model: "ModelProto"
    placement: Placement
    measured: Measured
    quality: Quality
    to: Destination
    fit: Batches
    held: Batches
    reference: Floats
    say: OnProgress


def quantise(
    model: "ModelProto",
    batches: Batches,
    measured: Measured,
    *,
    method: str = "auto",
    quality: Quality = "normal",
    fp16_share: float | Collection[str] = FP16_SHARE,
    to: Destination = Destination(),
    on_progress: OnProgress = lambda phase, done, total: None,
) -> Quantised:
    """Quantise a network to int8 and correct it, as far as ``quality`` goes.

    Args:
        model: the float32 graph, batch norm folded.
        batches: calibration inputs. Every step is measured on those that ``measured`` holds out, else on the last
            quarter of these, which no fit then sees; on 25 images at most.
        measured: what was observed of ``place(model).scale_of``'s tensors and of the layers' inputs.
        method: a key of ``measured.scales``, or ``auto``: that which serves the network best.
        quality: ``fast`` corrects biases from means; ``normal`` shifts, rounds and fits layer by layer; ``high`` also
            shifts what is padded, which adds a Pad before such layers, and fits on more images.
        fp16_share: the share of the multiply-adds that may stay in the float type, 0 to 1; ``fast`` leaves none. Or the
            names of the layers that stay in it, whatever their share, and whatever the quality.
        to: the type that the graph is to be cast to, and the compiler.
        on_progress: told a phase's name and how many of its parts are done.

    Raises:
        ExportError: an unknown method, quality or layer, a share outside 0 to 1, no images, or no layer for int8.
    """
    named = () if isinstance(fp16_share, (int, float)) else tuple(fp16_share)
    share = fp16_share if isinstance(fp16_share, (int, float)) else None
    placement = place(model, left_out=named, flavour=to.flavour)
    _check(placement, measured, method, quality, share or 0.0)
    fit, held, notes = split(model, batches, measured.held_out, quality)
    exact = run_all(model, held, optimise="all")
    job = _Job(model, placement, measured, quality, to, fit, held, exact, on_progress)
    method, scales, layers, steps = _choose(job, method)
    graph = insert_qdq(model, placement, scales, weights=layers, rest=to.rest)
    kept = _kept(job, named)
    first = Quantised(graph, method, scales, placement.decisions, tuple(steps), steps[-1].name, *kept, notes)
    if quality == "fast":
        return first
    return _best(first, _corrected(job, first, share))


def layer_noise(
    model: "ModelProto",
    batches: Batches,
    measured: Measured,
    method: str,
    *,
    quality: Quality = "normal",
    to: Destination = Destination(),
    on_progress: OnProgress = lambda phase, done, total: None,
) -> dict[str, float]:
    """Return what each layer that would be int8 adds to the answers, alone: node → noise power, in the graph's order.

    Args:
        model, batches, measured, quality, to, on_progress: as ``quantise`` takes them.
        method: a key of ``measured.scales``.
    """
    placement = place(model, flavour=to.flavour)
    _check(placement, measured, method, quality, 0.0)
    fit, held, _ = split(model, batches, measured.held_out, "normal" if quality == "fast" else quality)
    job = _Job(model, placement, measured, quality, to, fit, held, np.empty(0, np.float32), on_progress)
    return _noise(job, _moved(job, placement, measured.scales[method]), placement.layers)


def _kept(job: _Job, left_out: Collection[str]) -> tuple[tuple[str, ...], float]:
    """Return the layers that are left out, in the graph's order, and their share of the multiply-adds."""
    if not left_out:
        return (), 0.0
    costs = layer_costs(job.model, job.held[0])
    order = tuple(name for name in costs if name in left_out)
    if len(order) < len(set(left_out)):
        missing = next(name for name in left_out if name not in costs)
        raise ExportError(f"no int8 layer of this network is called {missing}: it cannot be left out.")
    return order, sum(costs[name] for name in order) / sum(costs.values())


def _check(placement: Placement, measured: Measured, method: str, quality: str, share: float) -> None:
    if quality not in get_args(Quality) or not 0 <= share <= 1:
        known = ", ".join(get_args(Quality))
        raise ExportError(f"expected a quality of {known} and a share of 0 to 1, got {quality!r} and {share}.")
    if method != "auto" and method not in measured.scales:
        raise ExportError(f"ranges {method!r}: expected auto or one of {', '.join(measured.scales)}.")
    if not placement.layers:
        rules = sorted({one.rule for one in placement.decisions if one.role == "input"})
        raise ExportError(
            "no layer of this network suits int8: every one is too small, has no constant weights, or is none that the "
            f"compiler computes in int8 (by the rules: {', '.join(rules) or 'there is no such layer'})."
        )


def _step(job: _Job, name: str, answers: Floats) -> Step:
    figures = agreement(job.reference, answers)
    return Step(name, figures.sqnr_db, typical_sqnr(job.reference, answers), figures.top1)


def _choose(job: _Job, method: str) -> tuple[str, Mapping[str, float], dict[str, Int8Layer], list[Step]]:
    """Choose ranges, each way with biases corrected; return the steps measured, the chosen one last."""
    layers = correct_biases(job.model, job.placement, job.measured.means, rest=job.to.rest)
    names = list(job.measured.scales) if method == "auto" else [method]
    steps: dict[str, Step] = {}

    def answer(name: str) -> Floats:
        job.say("ranges", len(steps), len(names))
        graph = insert_qdq(job.model, job.placement, job.measured.scales[name], weights=layers, rest=job.to.rest)
        answers = run_all(graph, job.held)
        steps[name] = _step(job, f"{name} ranges, biases corrected", answers)
        return answers

    chosen = choose(names, job.reference, answer).method
    job.say("ranges", len(names), len(names))
    return chosen, job.measured.scales[chosen], layers, [*(steps[n] for n in names if n != chosen), steps[chosen]]


def _moved(job: _Job, placement: Placement, scales: Mapping[str, float]) -> Shifted:
    """Shift what can be; ``fast`` shifts nothing."""
    if job.quality == "fast":
        return Shifted(job.model, scales, {}, {})
    return shift(job.model, placement, scales, padded=job.quality == "high", rest=job.to.rest)


def _corrected(job: _Job, first: Quantised, share: float | None) -> Quantised:
    """Shift, leave out what the answers feel most within a share, if one is given, round and fit layer by layer."""
    high = job.quality == "high"
    moved = _moved(job, job.placement, first.scales)
    left_out, spent = (first.left_out, first.fp16_share) if share is None else _left_out(job, moved, share)
    if left_out and share is not None:
        moved = _moved(job, place(job.model, left_out=left_out, flavour=job.to.flavour), first.scales)
    placement = place(moved.model, left_out=left_out, flavour=job.to.flavour)
    corrected = correct(
        moved.model, placement, moved.scales, job.fit, options=Options(job.to.rest),
        on_layer=lambda done, total: job.say("layers", done, total),
    )  # fmt: skip
    graph = insert_qdq(moved.model, placement, moved.scales, weights=corrected.layers, rest=job.to.rest)
    name = f"{'255-level shift everywhere' if high else '255-level shift'}, rounding, affine correction"
    name += f", {len(left_out)} layers left out" if left_out else ""
    step = _step(job, name, run_all(graph, job.held))
    steps = (*first.steps, step)
    return Quantised(
        graph, first.method, moved.scales, placement.decisions, steps, step.name, left_out, spent, first.notes
    )


def _left_out(job: _Job, moved: Shifted, share: float) -> tuple[tuple[str, ...], float]:
    costs = layer_costs(job.model, job.fit[0])
    whole = sum(costs.values())
    placement = place(moved.model, flavour=job.to.flavour)
    candidates = [name for name in placement.layers if costs[name] <= share * whole]
    if not candidates:
        return (), 0.0
    chosen = pick(costs, _noise(job, moved, candidates), share)
    order = [name for name in placement.layers if name in chosen]
    return tuple(order), sum(costs[name] for name in order) / whole


def _noise(job: _Job, moved: Shifted, candidates: Collection[str]) -> dict[str, float]:
    """Quantise one layer at a time, on a few images."""
    placement = place(moved.model, flavour=job.to.flavour)
    layers = correct_biases(moved.model, placement, moved.means(job.measured.means), rest=job.to.rest)
    fixed = fixed_rows(job.model)
    few = grouped(list(rows_of(job.fit))[: max(_SCANNED, fixed)], fixed, _SCANNED)
    return sensitivity(
        moved.model, moved.scales, layers, few, candidates, rest=job.to.rest,
        on_layer=lambda done, total: job.say("sensitivity", done, total),
    )  # fmt: skip


def _best(first: Quantised, second: Quantised) -> Quantised:
    """Keep the later graph, unless it answers worse than the earlier one; that is said."""
    if second.steps[-1].typical_db >= first.steps[-1].typical_db:
        return second
    note = f"the corrections lowered the SQNR to {second.steps[-1].typical_db:.1f} dB and were left away"
    return Quantised(
        first.model, first.method, first.scales, first.decisions, second.steps, first.kept, first.left_out,
        first.fp16_share, (*first.notes, note),
    )  # fmt: skip
