"""INT8's part of an export: images in, a Q/DQ graph with its record and its CPU twin out."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from engineworks.calibration.doctor import Expected, examine
from engineworks.calibration.equalise import equalise
from engineworks.calibration.lint import lint
from engineworks.calibration.observe import EVERY, Statistics, observe
from engineworks.calibration.parts import MOST_FIT, MOST_HELD
from engineworks.calibration.placement import place
from engineworks.calibration.quantise import (
    Destination,
    Measured,
    Quantised,
    layer_noise,
    quantise,
)
from engineworks.calibration.record import (
    Calibration,
    check_fresh,
    dump_calibration,
    graph_sha256,
    load_calibration,
    tensor_records,
    tool_versions,
)
from engineworks.calibration.scales import Method, scales
from engineworks.calibration.source import Images
from engineworks.calibration.twin import cpu_twin, twin_tensors
from engineworks.export.budget import OnPart, Shop, judge_twin, keep_within
from engineworks.export.calibration_images import Row, divided, fixed_rows, taken
from engineworks.export.half import to_half
from engineworks.export.judge import Judge, class_count, labelled_pictures, open_judge
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError, InputError
from engineworks.runtime.manifest import Scores
from engineworks.runtime.preprocessing import Preprocessing
from engineworks.runtime.trt_runtime import Flavour

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
OnProgress = Callable[[str, float | None], None]
_EQUALISED = 25  # images on which channels are seen; what they show moves a grid, never an answer
_AUTO: tuple[Method, ...] = ("minmax", "percentile", "mse")  # entropy clips what a ReLU network needs: on demand alone


@dataclass(frozen=True)
class Calibrator:
    """What INT8 needs beside the graph.

    Attributes:
        recipe: what was asked for.
        images: all that were chosen.
        preprocessing: how a picture becomes the input; None where that is not known.
        expected: from the graph, what training saw (``norms.seen_in_training``).
        say: told a step, its outcome in words, and whether that is a warning.
        on_progress: told what is being done, and how much of it is.
        labels, scores: the network's classes, and how it ranks them.
        flavour: the compiler that layers are chosen for; ``tensorrt``, whose rules are documented, where there is none.
    """

    recipe: Recipe
    images: Images
    preprocessing: Preprocessing | None
    expected: Callable[["ModelProto"], Expected]
    say: Callable[[str, str, bool], None]
    on_progress: OnProgress
    labels: tuple[str, ...] = ()
    scores: Scores = "logits"
    flavour: Flavour = "tensorrt"

    @property
    def parts(self) -> tuple[Images, Images]:
        """The images to fit on, and those held out: a quarter, or more where a fixed batch takes them."""
        return divided(self.images, self.recipe)


@dataclass(frozen=True)
class Calibrated:
    """A Q/DQ graph, and what a bundle holds of how it came about.

    ``model`` is float32 around int8; ``twin`` the graph for CPUs, None where it does not keep within the budget;
    ``ranges`` tensor → largest magnitude on the images; ``record`` the content of calibration.json; ``factors`` tensor
    → what its channels were equalised by.
    """

    model: "ModelProto"
    twin: "ModelProto | None"
    layers: tuple[str, ...]
    ranges: Mapping[str, float]
    record: bytes
    notes: tuple[str, ...]
    factors: Mapping[str, Array] = field(default_factory=dict)


def calibrate(graph: "ModelProto", job: Calibrator) -> Calibrated:
    """Observe the images, choose ranges, quantise and correct; the held-out images decide what is kept.

    Args:
        graph: the float32 graph, its weights inside.
        job: the images, and how far to go.

    Raises:
        ExportError: images that do not fit the network or overflow it, a stale ``--calib-cache``, a network that int8
            does not suit, a budget that cannot be met, or a Q/DQ graph that TensorRT would misread.
    """
    try:
        return _calibrate(graph, job)
    except InputError as error:
        raise ExportError(str(error)) from error


def _calibrate(graph: "ModelProto", job: Calibrator) -> Calibrated:
    fit, held = job.parts
    judge = None if job.recipe.max_drop is None else _judge(graph, job, held)
    fixed = fixed_rows(job.recipe)
    rows, few = taken(fit, max(MOST_FIT, fixed), fixed), taken(held, max(MOST_HELD, fixed), fixed)
    notes, digest = _examined(graph, job, rows), graph_sha256(graph)
    equalised = equalise(graph, rows[:_EQUALISED])
    graph = equalised.model
    record = _observed(graph, digest, job, fit)
    bench = _Bench(graph, job, record, rows, few)
    within = None if judge is None else keep_within(judge, job.recipe.max_drop or 0.0, _shop(bench))
    made = bench.quantise(job.recipe.fp16_share) if within is None else within.made
    _say_made(made, bench)
    refused = next((finding for finding in lint(made.model) if finding.severity == "refuse"), None)
    if refused is not None:
        raise ExportError(f"TensorRT would refuse the Q/DQ graph: {refused.node}: {refused.what} {refused.mend}")
    record = _completed(record, made)
    ends = {name: (tensor.minimum, tensor.maximum) for name, tensor in record.tensors.items()}
    left = () if within is None else made.left_out
    twin: ModelProto | None = cpu_twin(graph, ends, reduced=True, means=_means(record), left_out=left)
    if within is not None and judge is not None:
        assert twin is not None
        within = judge_twin(within, judge, twin, job.say)
        twin = twin if within.record["cpu"]["kept"] else None
        record = replace(record, left=within.reasons, budget=within.record)
    return Calibrated(
        made.model,
        twin,
        place_of(made),
        {name: max(-low, high) for name, (low, high) in ends.items()},
        dump_calibration(record),
        (*notes, *made.notes, *_left_out(made), *(within.notes if within else ())),
        equalised.factors,
    )


def _judge(graph: "ModelProto", job: Calibrator, held: Images) -> Judge:
    """Open what the budget is judged on: labelled pictures, or all held-out images."""
    recipe, say = job.recipe, job.say
    images = held
    if recipe.data is not None:
        images = labelled_pictures(
            recipe.data, graph.graph.input[0].name, job.preprocessing, job.labels, class_count(graph),
            lambda name, why: say("budget", f"left out {name}: {why}", True),
        )  # fmt: skip
        both = len({*job.images.digests()} & {*images.digests()})
        if both:
            say("budget", f"{both} of the labelled pictures calibrate too: the drop on others may be larger", True)
    job.on_progress("budget: asking float32", None)
    return open_judge(graph, images, recipe.max_drop or 0.0, job.scores, labelled=recipe.data is not None)


def place_of(made: Quantised) -> tuple[str, ...]:
    """Return the layers that compute in int8."""
    return tuple(dict.fromkeys(d.node for d in made.decisions if d.role == "weight" and d.quantised))


def _examined(graph: "ModelProto", job: Calibrator, rows: Sequence[Row]) -> tuple[str, ...]:
    """Ask the data doctor, where it knows what to look for; say what it finds."""
    first = next(iter(rows[0].values()))
    picture = len(rows[0]) == 1 and first.ndim == 4 and first.shape[1] in {1, 3} and first.dtype == np.float32
    if job.preprocessing is None or not picture or job.recipe.calib_data == "synthetic":
        return ()
    found = examine(rows, job.preprocessing, model=graph, expected=job.expected(graph))
    return tuple(f"calibration images: {finding.fault}. {finding.sentence}" for finding in found)


def _observed(graph: "ModelProto", digest: str, job: Calibrator, fit: Images) -> Calibration:
    """Observe the images that are not held out, or take what ``--calib-cache`` kept of the same graph and images.

    ``digest`` is that of the graph as it was given, before its channels were equalised.
    """
    recipe = job.recipe
    cache = None if recipe.calib_cache is None else Path(recipe.calib_cache)
    if cache is not None and cache.is_file():
        kept = load_calibration(cache.read_bytes(), cache.name)
        check_fresh(
            kept, graph=digest, images=job.images.sha256, preprocessing=job.preprocessing, method=recipe.calib_method,
            where=cache.name,
        )  # fmt: skip
        job.say("calibration", f"what {kept.count} images showed, from {cache.name}", False)
        return kept
    methods: tuple[Method, ...] = _AUTO if recipe.calib_method == "auto" else (recipe.calib_method,)
    began = time.monotonic()
    wanted = (name for flavour in get_args(Flavour) for name in place(graph, flavour=flavour).activations)
    names = list(dict.fromkeys((*wanted, *twin_tensors(graph))))  # for every compiler: the cache knows of none
    statistics = observe(graph, names, fit, on_progress=_told(job.on_progress))
    record = _recorded(statistics, methods, job, digest)
    job.say("calibration", f"{statistics.images} images observed in {time.monotonic() - began:.1f} s", False)
    if cache is not None:
        cache.write_bytes(dump_calibration(record))
    return record


def _told(on_progress: OnProgress) -> Callable[[int, int | None, float | None], None]:
    def tell(done: int, total: int | None, left: float | None) -> None:
        words = "observing images" + ("" if left is None else f", {left:.0f} s left:")
        on_progress(f"calibration: {words}", done / total if total else None)

    return tell


def _recorded(statistics: Statistics, methods: Sequence[Method], job: Calibrator, digest: str) -> Calibration:
    recipe = job.preprocessing
    return Calibration(
        method=job.recipe.calib_method,
        tensors=tensor_records(statistics, {method: scales(statistics, method) for method in methods}),
        graph=digest,
        images=job.images.sha256,
        description=job.images.description,
        count=statistics.images,
        every=EVERY,
        preprocessing=None if recipe is None else recipe.to_json(),
        tools=tool_versions(),
    )


@dataclass(frozen=True)
class _Bench:
    """Everything that an int8 network is made of, and when the work began."""

    graph: "ModelProto"
    job: Calibrator
    record: Calibration
    rows: Sequence[Row]
    held: Sequence[Row]
    began: float = field(default_factory=time.monotonic)

    @property
    def to(self) -> Destination:
        """What the graph is meant for."""
        return Destination(self.job.recipe.int8_rest, self.job.flavour)

    @property
    def measured(self) -> Measured:
        """What was observed, as quantising takes it."""
        tensors = self.record.tensors
        methods = next(iter(tensors.values())).candidates
        scales = {method: {name: one.candidates[method] for name, one in tensors.items()} for method in methods}
        return Measured(scales, _means(self.record), self.held)

    def quantise(
        self, leave: float | Collection[str], method: str | None = None, on_part: OnPart | None = None
    ) -> Quantised:
        """Quantise all but these layers, or all but some within that share of the multiply-adds."""
        recipe = self.job.recipe
        return quantise(
            self.graph,
            self.rows,
            self.measured,
            method=method or recipe.calib_method,
            quality=recipe.quality,
            fp16_share=leave,
            to=self.to,
            on_progress=on_part or self._tell,
        )

    def _tell(self, phase: str, done: int, total: int) -> None:
        self.job.on_progress(f"calibration: {phase}", done / max(total, 1))


def _shop(bench: _Bench) -> Shop:
    recipe, job = bench.job.recipe, bench.job

    def noise(method: str, on_part: OnPart) -> Mapping[str, float]:
        return layer_noise(
            bench.graph, bench.rows, bench.measured, method, quality=recipe.quality, to=bench.to, on_progress=on_part,
        )  # fmt: skip

    return Shop(
        layers=len(place(bench.graph, flavour=job.flavour).layers),
        build=bench.quantise,
        noise=noise,
        typed=(lambda model: to_half(model, "fp16")) if recipe.int8_rest == "fp16" else None,
        rest=recipe.int8_rest,
        say=job.say,
        on_progress=job.on_progress,
    )


def _say_made(made: Quantised, bench: _Bench) -> None:
    best = next(step for step in made.steps if step.name == made.kept)
    bench.job.say(
        "int8",
        f"{len(place_of(made))} layers, {made.method} ranges, {best.sqnr_db:.1f} dB and top-1 {best.top1:.0%} on "
        f"{len(bench.held)} held-out images, in {time.monotonic() - bench.began:.1f} s",
        False,
    )


def _means(record: Calibration) -> dict[str, Array]:
    return {name: np.array(tensor.means) for name, tensor in record.tensors.items()}


def _completed(record: Calibration, made: Quantised) -> Calibration:
    """Write down what was decided."""
    chosen = {name: tensor.candidates[made.method] for name, tensor in record.tensors.items()} | dict(made.scales)
    tensors = {name: replace(tensor, scale=chosen[name]) for name, tensor in record.tensors.items()}
    share = f"among the layers that the answers feel most, at {made.fp16_share:.2%} of the multiply-adds together"
    return replace(
        record,
        tensors=tensors,
        chosen=made.method,
        left=dict.fromkeys(made.left_out, share),
        decisions=tuple(asdict(decision) for decision in made.decisions),
        steps=tuple(asdict(step) for step in made.steps),
    )


def _left_out(made: Quantised) -> Iterable[str]:
    turned = {one.node: one.why for one in made.decisions if one.role == "input" and one.rule == "transposed"}
    if turned:
        yield f"int8: {', '.join(turned)} stay in the float type: {next(iter(turned.values()))}"
    if made.left_out:
        yield (
            f"int8: {len(made.left_out)} layers stay in the float type, {made.fp16_share:.2%} of the multiply-adds: "
            f"{', '.join(made.left_out)}"
        )
