"""``--max-drop``: the fewest layers stay in the float type so that a network is shown to be as right as was asked.

Sets of layers are judged in float32 around int8, which a CPU runs three times as fast as FP16, and the one found once
more as it ships. How many evaluations there will be is said beforehand; one Ctrl-C ends the search with the best set so
far.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engineworks.calibration.budget import Drop, Search, Stopped, Trial, most_evaluations, search
from engineworks.calibration.quantise import Quantised
from engineworks.export.describe import STOPPED
from engineworks.export.interrupts import first_interrupt_asks
from engineworks.export.judge import Judge
from engineworks.runtime.command import duration
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto

OnPart = Callable[[str, int, int], None]
_BUILDING = 0.5  # of an evaluation's bar


@dataclass(frozen=True)
class Shop:
    """How the networks come about that are judged.

    Attributes:
        layers: how many layers int8 suits.
        build: leaves the layers named out and quantises the rest; with the ranges named, else those that serve best.
        noise: with the ranges named, node → what the answers feel of it.
        typed: casts what is not int8 to the type that ships; None where that is float32.
        rest: that type's name.
        say: told a step, its outcome in words, and whether that is a warning.
        on_progress: told what is being done, and how much of it is.
    """

    layers: int
    build: Callable[[tuple[str, ...], str | None, OnPart], Quantised]
    noise: Callable[[str, OnPart], Mapping[str, float]]
    typed: "Callable[[ModelProto], ModelProto] | None"
    rest: str
    say: Callable[[str, str, bool], None]
    on_progress: Callable[[str, float | None], None]


@dataclass(frozen=True)
class Within:
    """The network that meets the budget with the fewest layers left out.

    ``reasons``: layer left out → why; ``record`` is what calibration.json keeps; ``notes`` what a reader must know.
    """

    made: Quantised
    reasons: Mapping[str, str]
    record: dict[str, Any]
    notes: tuple[str, ...]


def keep_within(judge: Judge, allowed: float, shop: Shop) -> Within:
    """Search for the fewest layers to leave out, and say so beforehand, meanwhile and afterwards.

    Args:
        judge: what the networks are judged on.
        allowed: the budget, in percentage points.
        shop: makes the networks.

    Raises:
        ExportError: the budget is not met while one layer is int8; the least drop that was reached is told.
        KeyboardInterrupt: a second Ctrl-C, or the first before any set of layers met the budget.
    """
    most = most_evaluations(shop.layers)
    then = (
        "one of the graph for CPUs" if shop.typed is None else f"of the set found in {shop.rest} and the graph for CPUs"
    )
    count = f"at most {most} evaluations on {len(judge.exact)} {judge.what}, then {then}"
    shop.say("budget", f"{count}; Ctrl-C keeps the best so far", False)
    with first_interrupt_asks() as asked:
        run = _Run(judge, allowed, shop, asked)
        found = search(shop.layers, run.measure, allowed, on_trial=run.tell)
        if found.stopped:
            shop.say("budget", f"stopped after {len(found.trials)} of at most {most} evaluations", True)
        if found.met is None and found.stopped:
            shop.say("budget", f"no set of layers had met --max-drop {allowed:g} yet", True)
            raise KeyboardInterrupt
        if found.met is None:
            raise ExportError(_refusal(found, allowed, shop))
        met, drop = run.shipped(found)
        found = replace(found, met=met)
        _say_too_late(asked() and not found.stopped, shop.say)
    return Within(run.made[met], _reasons(found, run), _record(found, run, drop), _notes(found, run, drop))


def judge_twin(within: Within, judge: Judge, twin: "ModelProto", say: Callable[[str, str, bool], None]) -> Within:
    """Hold the graph for CPUs to the same budget; ``record["cpu"]["kept"]`` says whether it keeps within it.

    Its weights have 7 bits and its activations other ranges, so that what was found for the other graph says nothing of
    it. Where it is left away, the graph for GPUs runs on CPUs, too.
    """
    with first_interrupt_asks() as asked:
        drop, allowed = judge.drop(twin, optimise="all"), within.record["allowed_points"]
        _say_too_late(asked(), say)
    kept = drop.within(allowed)
    words = f"{drop_words(drop)}, {_state(kept)} {allowed:g}"
    say("budget", f"the int8 graph for CPUs: {words}", not kept)
    record = within.record | {"cpu": drop_record(drop) | {"kept": kept}}
    note = f"no int8 graph for CPUs: {words}; the graph for GPUs runs there, in float and no faster than float32"
    return replace(within, record=record, notes=within.notes if kept else (*within.notes, note))


def _say_too_late(asked: bool, say: Callable[[str, str, bool], None]) -> None:
    if asked:
        say("budget", "the search was over already; Ctrl-C once more ends the export", True)


class _Run:
    """The networks made so far that met the budget, and the order in which layers are left out."""

    def __init__(self, judge: Judge, allowed: float, shop: Shop, asked: Callable[[], bool]) -> None:
        self.judge, self.allowed, self.shop, self.asked = judge, allowed, shop, asked
        self.made: dict[int, Quantised] = {}
        self.above: dict[int, Drop] = {}
        self.noise: Mapping[str, float] = {}
        self._method: str | None = None
        self._began, self._done = time.monotonic(), 0

    @property
    def order(self) -> list[str]:
        """The layers, that which the answers feel most first; of equal ones that which comes first in the graph."""
        return sorted(self.noise, key=lambda name: -self.noise[name])

    def measure(self, count: int) -> Drop:
        """Leave so many layers out, quantise the rest, run and count."""
        if count and not self.noise:
            assert self._method is not None
            self.noise = self.shop.noise(self._method, self._part("what the answers feel of each layer", 0.0, 1.0))
        words = f"evaluation {self._done + 1} of at most {most_evaluations(self.shop.layers)}, {count} layers left out"
        building = self._part(words, 0.0, _BUILDING)
        made = self.shop.build(tuple(self.order[:count]), self._method, building)
        self._method = made.method
        running = self._part(words, _BUILDING, 1.0)
        drop = self.judge.drop(made.model, lambda share: running("", int(share * 1000), 1000))
        if drop.within(self.allowed):  # with fewer layers out than any before; the one before is kept for ``shipped``
            self.made = {count: made} | dict(sorted(self.made.items())[:1])
        else:
            self.above[count] = drop
        return drop

    def shipped(self, found: Search) -> tuple[int, Drop]:
        """Judge the set that was found as it ships; where the cast takes it above the budget, the one before it.

        Raises:
            ExportError: that one too.
        """
        for count in sorted(self.made):
            if self.shop.typed is None:
                return count, next(trial.drop for trial in found.trials if trial.left_out == count)
            self.shop.on_progress(f"budget: {count} layers left out, in {self.shop.rest}", None)
            drop = self.judge.drop(self.shop.typed(self.made[count].model))
            kept, words = (
                drop.within(self.allowed),
                f"{count} of {self.shop.layers} layers left out, in {self.shop.rest}",
            )
            self.shop.say("budget", f"{words}: {drop_words(drop)}, {_state(kept)} {self.allowed:g}", not kept)
            if kept:
                return count, drop
            self.above[count] = drop
        raise ExportError(
            f"--max-drop {self.allowed:g} is met around float32 alone: {words}: {drop_words(drop)}. Try --int8-rest "
            "fp32, more pictures, or a larger --max-drop."
        )

    def tell(self, trial: Trial) -> None:
        """Say what an evaluation gave."""
        self._done += 1
        left, state = f"{trial.left_out} of {self.shop.layers} layers left out", _state(trial.drop.within(self.allowed))
        self.shop.say("budget", f"{left}: {drop_words(trial.drop)}, {state} {self.allowed:g}", False)

    def _part(self, words: str, start: float, end: float) -> OnPart:
        def at(phase: str, done: int, total: int) -> None:
            if self.asked():
                raise Stopped
            share = start + (end - start) * done / max(total, 1)
            self.shop.on_progress(f"budget: {words}{self._left(share)}:", share)

        return at

    def _left(self, share: float) -> str:
        """Say how long the rest takes at most, if evaluations go on as they went."""
        if not self._done:
            return ""
        whole, spent = most_evaluations(self.shop.layers), time.monotonic() - self._began
        return f", {duration(spent * (whole - self._done - share) / (self._done + share))} left at most"


def drop_words(drop: Drop) -> str:
    """Say a drop with its interval."""
    low, high = drop.interval
    if drop.labelled:
        return f"top-1 falls by {drop.points:.2f} points (95 %: {low:.2f} to {high:.2f})"
    return f"{drop.points:.2f} % are answered otherwise (95 %: {low:.2f} to {high:.2f})"


def _state(kept: bool) -> str:
    return "within" if kept else "above"


def drop_record(drop: Drop) -> dict[str, Any]:
    """Return a drop as calibration.json keeps it."""
    low, high = (round(end, 4) for end in drop.interval)
    return {"lost": drop.lost, "gained": drop.gained, "points": round(drop.points, 4), "low": low, "high": high}


def _refusal(found: Search, allowed: float, shop: Shop) -> str:
    best, first = found.best, found.trials[0]
    return (
        f"--max-drop {allowed:g} cannot be met in int8: with no layer left out {drop_words(first.drop)}; the least was "
        f"reached with {best.left_out} of {shop.layers} layers in {shop.rest}: {drop_words(best.drop)}. Try --quality "
        "high, more --calib-images, more pictures, a larger --max-drop, or --fp16."
    )


def _reasons(found: Search, run: _Run) -> dict[str, str]:
    """Say of each layer left out why it was: its place in the order, and what fewer layers would have cost."""
    assert found.met is not None
    less = max((count for count in run.above if count < found.met), default=None)
    if less is None:
        return {}
    high, whole = run.above[less].interval[1], sum(run.noise.values()) or 1.0
    cost = f"with {less} left out up to {high:.2f} points could be lost, {run.allowed:g} are allowed"
    return {
        name: f"number {place} of {len(run.order)} by what the answers feel of each layer alone, "
        f"{run.noise[name] / whole:.1%} of the noise; {cost}"
        for place, name in enumerate(run.order[: found.met], 1)
    }


def _record(found: Search, run: _Run, drop: Drop) -> dict[str, Any]:
    judge = run.judge
    return {
        "allowed_points": run.allowed,
        "judged_by": "agreement" if judge.truth is None else "labels",
        "data": judge.description,
        "sha256": judge.sha256,
        "pictures": len(judge.exact),
        "float32_right": None if judge.truth is None else int((judge.exact == judge.truth).sum()),
        "layers": run.shop.layers,
        "left_out": found.met,
        "most_evaluations": most_evaluations(run.shop.layers),
        "stopped": found.stopped,
        "shipped": drop_record(drop),
        "trials": [{"left_out": trial.left_out} | drop_record(trial.drop) for trial in found.trials],
    }


def _notes(found: Search, run: _Run, drop: Drop) -> tuple[str, ...]:
    left = f"{found.met} of {run.shop.layers} layers left out of int8"
    seen = f"{drop_words(drop)} on {len(run.judge.exact)} {run.judge.what}"
    note = f"accuracy budget of {run.allowed:g} points: {seen}; {left}"
    return (note, f"{STOPPED}: fewer layers in {run.shop.rest} might do") if found.stopped else (note,)
