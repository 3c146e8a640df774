"""From a name to a proven bundle: the whole job, step by step.

Each step hands a value to the next; nothing is written before the last comparison has passed. The engine is compiled
beside the comparison of the graph that it is built from, for neither needs the other.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.export import cache, describe
from engineworks.export.engine import Choice, Engine, choose_compiler, compile_engine
from engineworks.export.factory import users_code
from engineworks.export.interrupts import import_tools, interrupts_held_back
from engineworks.export.original import Original, in_batches
from engineworks.export.precision import check_compiled
from engineworks.export.recipe import Recipe
from engineworks.export.source import OnDownload, Source, resolve, with_calibration
from engineworks.export.trt_compilers import probe_gpu
from engineworks.export.trt_journal import OnProgress
from engineworks.runtime.bundle import Bundle, check_target, write_bundle
from engineworks.runtime.errors import BundleError, ExportError
from engineworks.runtime.manifest import Manifest

if TYPE_CHECKING:
    import numpy.typing as npt

    from engineworks.export.calibrate import Calibrator
    from engineworks.export.head import Head
    from engineworks.export.inputs import InputSpec
    from engineworks.export.ladder import Proven
    from engineworks.export.parity import Yardstick
    from engineworks.export.to_onnx import Exported

_SAME_DB = 90.0  # as two float32 runs agree at the least
Say = Callable[[str, str, bool], None]


def _silent(step: str, text: str, warning: bool) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Job:
    """One export on its way: what was asked, from what, and whom to tell."""

    recipe: Recipe
    source: Source
    choice: Choice
    say: Say
    on_progress: OnProgress


def export_model(
    recipe: Recipe,
    out: Path,
    *,
    force: bool = False,
    use_cache: bool = True,
    say: Say = _silent,
    on_progress: OnProgress = lambda phase, share: None,
    on_download: OnDownload | None = None,
) -> Bundle:
    """Export a network into a bundle, prove it against PyTorch, and compile it where a compiler is installed.

    Args:
        recipe: what to export, and how.
        out: the bundle's folder; written whole or not at all.
        force: replace a bundle that stands there.
        use_cache: take the result of the same export made before, and keep this one.
        say: told each step's name, its outcome in words, and whether that is a warning.
        on_progress: told a long step's phase and how much of it is done, 0 to 1; the compiler's from another thread.
        on_download: told the bytes so far and in all, where weights are downloaded.

    Raises:
        ExportError: the model cannot be found or built, the graph cannot be made, is not what was asked for, or does
            not agree with the original.
        BundleError: ``out`` cannot be written.
        ModelError: no such network, or weights that do not fit or cannot be had.
    """
    out = Path(out)
    check_target(out, force=force)
    choice = None if recipe.engine == "auto" else _choose(recipe)
    source = resolve(recipe, cache.cache_folder() / "weights", on_download)
    if recipe.precision == "int8":
        source = with_calibration(source, recipe)
    say("weights", describe.weights_line(source.weights), not source.weights.trained)
    for words in source.said:
        say("model", words, False)
    if source.weights.origin in {"file", "factory"}:
        say("pictures", describe.pictures_line(source.preprocessing), False)
    key = cache.key_of(recipe, source.identity, _host(recipe)) if use_cache and source.identity else None
    found = _found(key, out, force, say) if key else None
    if found is not None:
        return found
    choice = choice or _choose(recipe)
    job = Job(recipe, source, choice, say, on_progress)
    bundle = _make(job, out, force)
    if key and not _failed(choice, recipe) and not _stopped(bundle):
        _keep(key, bundle, say)
    return bundle


def _choose(recipe: Recipe) -> Choice:
    with interrupts_held_back():
        return choose_compiler(recipe.engine, targets=recipe.targets)


def _make(job: Job, out: Path, force: bool) -> Bundle:
    import_tools()
    from engineworks.export.head import seen_before
    from engineworks.export.realised import check_engine

    original = job.source.open()
    job.say("build", f"{describe.count(original.parameters)} parameters", False)
    head = _head(job)
    inputs = (seen_before(original.inputs[0]),) if head else original.inputs
    calibrator = _calibrator(job, original)
    samples, words = _samples(job, inputs, calibrator)
    job.say("inputs", f"{', '.join(map(str, inputs))}; compared on {words}", False)
    yardstick, names = _measure(original, samples, head, job)
    exported = original.export(head.behind(samples) if head else samples, names, job.recipe)
    job.say("graph", describe.graph_line(exported), False)
    if head is not None:
        run = exported.run
        exported = replace(exported, run=lambda arrays, kind: run(head.behind(arrays), kind))
    proven, engine = _prove_and_compile(job, exported, yardstick, head, calibrator)
    job.say(
        "engine", describe.engine_line(engine, job.choice, job.recipe), engine is None and job.recipe.engine != "none"
    )
    if engine is not None:
        shown = check_engine(engine, proven.content)
        job.say("plan", shown.words, shown.warning)
    manifest = describe.manifest(job.recipe, job.source, job.choice, original.parameters, proven, engine)
    _say_notes(manifest, job.say)
    return write_bundle(out, manifest, describe.files(manifest, proven, engine, yardstick), force=force)


def _head(job: Job) -> "Head | None":
    """Return what makes the graph take pictures as they are, where that was asked for."""
    from engineworks.export.head import Head
    from engineworks.runtime.preprocessing import Preprocessing

    if job.recipe.input == "float32":
        return None
    if job.source.preprocessing is None:
        raise ExportError(f"--input uint8: how pictures are normalised for {job.source.model[0]} is not known.")
    return Head(Preprocessing.from_json(job.source.preprocessing))


def _calibrator(job: Job, original: Original) -> "Calibrator | None":
    """Open the images that INT8 is calibrated with; None for every other precision."""
    if job.recipe.precision != "int8":
        return None
    from engineworks.export.calibrate import Calibrator
    from engineworks.export.calibration_images import normalised_before, open_calibration
    from engineworks.export.norms import seen_in_training

    known = job.source.preprocessing
    images = open_calibration(job.recipe, original.inputs, known, lambda words: job.say("calibration", words, True))
    job.say("calibration", images.description, job.recipe.calib_data == "synthetic")
    return Calibrator(
        job.recipe,
        images,
        normalised_before(known),
        partial(seen_in_training, original.module if job.source.weights.trained else None),
        job.say,
        job.on_progress,
        job.source.labels,
        job.source.scores,
        job.choice.flavour or "tensorrt",
    )


def _samples(
    job: Job, inputs: "tuple[InputSpec, ...]", calibrator: "Calibrator | None"
) -> "tuple[dict[str, npt.NDArray[Any]], str]":
    """Take what every graph is compared on: for INT8 held-out images, for its scales hold for such alone."""
    from engineworks.export.calibration_images import held_out_samples
    from engineworks.export.samples import samples_for

    if calibrator is None or job.recipe.samples is not None:
        return samples_for(inputs, job.source.preprocessing, job.recipe.samples)
    samples = held_out_samples(calibrator.parts[1], calibrator.preprocessing if job.recipe.input == "uint8" else None)
    return samples, f"{len(next(iter(samples.values())))} of the calibration images that are held out"


def _measure(
    original: Original, samples: "dict[str, npt.NDArray[Any]]", head: "Head | None", job: Job
) -> "tuple[Yardstick, tuple[str, ...]]":
    """Ask the original for its answers at every batch size, and see that they say something; name its outputs."""
    from engineworks.export.parity import Yardstick, batches, check_alive
    from engineworks.export.probe import examine
    from engineworks.export.reference import answers_by_batch, run_once

    given, batch = head.behind(samples) if head else samples, job.recipe.batch
    run = in_batches(original.run, batch.max) if batch.min == batch.max else original.run
    with users_code(job.source.model[0]):
        probes = None if original.module is None else examine(run, original.module, given, batch)
        outputs = run_once(run, given)
        reference = list(outputs.values())
        check_alive(reference)
        answers = answers_by_batch(run, given, reference, batches(batch))
    yardstick = Yardstick(samples, reference, answers, job.source.scores, original.title, probes)
    return yardstick, original.outputs or tuple(outputs)


def _prove_and_compile(
    job: Job, exported: "Exported", yardstick: "Yardstick", head: "Head | None", calibrator: "Calibrator | None"
) -> "tuple[Proven, Engine | None]":
    """Compile the typed graph in a thread while it is compared with the original; either failure stops the other."""
    from engineworks.export.calibrate import calibrate
    from engineworks.export.precision import realised
    from engineworks.export.prove import prove

    recipe = job.recipe
    stop, builds = threading.Event(), list[Future[Engine]]()
    with ThreadPoolExecutor(1, "engine") as pool:

        def compile_beside(content: bytes) -> None:
            if job.choice.flavour is not None:
                builds.append(pool.submit(_compile, content, job, stop))

        try:
            proven = prove(
                exported,
                recipe,
                yardstick,
                compile_beside,
                lambda rung: job.say(*describe.rung_line(rung), False),
                head,
                None if calibrator is None else lambda graph: calibrate(graph, calibrator),
                lambda name, layers: job.say("layers", describe.layers_line(name, layers), False),
            )
            engine = builds[0].result() if builds else None
            if engine is not None:
                rest = recipe.int8_rest if recipe.precision == "int8" else recipe.precision
                check_compiled(engine.layer_types, rest, realised(proven.graph).get("int8", 0))
            return proven, engine
        except BaseException:
            stop.set()
            raise


def _compile(content: bytes, job: Job, stop: threading.Event) -> Engine:
    assert job.choice.flavour is not None
    batch = job.recipe.batch
    return compile_engine(
        content,
        flavour=job.choice.flavour,
        batch=(batch.min, batch.opt, batch.max),
        targets=job.recipe.targets,
        on_progress=lambda phase, share: job.on_progress(f"engine: {phase}", share),
        cancelled=stop.is_set,
    )


def _say_notes(manifest: Manifest, say: Say) -> None:
    """Repeat what a user must not miss of the manifest."""
    for note in manifest.notes:
        if not note.startswith(describe.QUIET_NOTES):
            say("note", note, True)


def _failed(choice: Choice, recipe: Recipe) -> bool:
    """Tell whether an installed compiler could not be used: such a bundle must not be found again after the mend."""
    return recipe.engine == "auto" and choice.flavour is None and "tensorrt-rtx-cu13" in cache.versions()


def _stopped(bundle: Bundle) -> bool:
    """Tell whether the search of the budget was cut off: the same export made again may leave fewer layers out."""
    return any(note.startswith(describe.STOPPED) for note in bundle.manifest.notes)


def _host(recipe: Recipe) -> str:
    """Return the GPU that ``tensorrt`` would compile for: part of the key, for its engines run on no other kind."""
    if recipe.engine in {"rtx", "none"} or "tensorrt" not in cache.versions():
        return "any"
    return probe_gpu().target or "no GPU"


def _found(key: str, out: Path, force: bool, say: Say) -> Bundle | None:
    try:
        bundle = cache.fetch(key, out, force=force)
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror or error}. Nothing was left behind.") from error
    if bundle is not None:
        say("cache", f"the same export was made {bundle.manifest.created}; copied, every digest checked", False)
        if not bundle.manifest.engines and bundle.manifest.recipe["engine"] != "none":
            say("engine", "none in that bundle: no compiler was installed when it was made", True)
        _say_notes(bundle.manifest, say)
    return bundle


def _keep(key: str, bundle: Bundle, say: Say) -> None:
    try:
        cache.keep(key, bundle)
    except OSError as error:
        say("cache", f"not kept: {error.strerror or error}", True)
