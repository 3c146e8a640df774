"""From a name to a proven bundle: the whole job, step by step.

Each step hands a value to the next; nothing is written before the last comparison has passed. The engine is compiled
beside the comparison of the graph that it is built from, for neither needs the other.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.export import cache, describe
from engineworks.export.engine import Choice, Engine, choose_compiler, compile_engine
from engineworks.export.interrupts import import_tools, interrupts_held_back
from engineworks.export.precision import check_compiled
from engineworks.export.recipe import Recipe
from engineworks.export.source import OnDownload, Source, check_torch, resolve
from engineworks.export.trt_compilers import probe_gpu
from engineworks.export.trt_journal import OnProgress
from engineworks.runtime.bundle import Bundle, check_target, write_bundle
from engineworks.runtime.errors import BundleError
from engineworks.runtime.manifest import Manifest

if TYPE_CHECKING:
    from torch import nn

    from engineworks.export.parity import Yardstick
    from engineworks.export.prove import Proven
    from engineworks.export.to_onnx import Exported

Say = Callable[[str, str, bool], None]
INPUT, OUTPUT = "input", "output"


def _silent(step: str, text: str, warning: bool) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Job:
    """One export on its way: what was asked, from what, and whom to tell."""

    recipe: Recipe
    source: Source
    choice: Choice
    say: Say
    on_progress: OnProgress | None


def export_model(
    recipe: Recipe,
    out: Path,
    *,
    force: bool = False,
    use_cache: bool = True,
    say: Say = _silent,
    on_progress: OnProgress | None = None,
    on_download: OnDownload | None = None,
) -> Bundle:
    """Export a network into a bundle, prove it against PyTorch, and compile it where a compiler is installed.

    Args:
        recipe: what to export, and how.
        out: the bundle's folder; written whole or not at all.
        force: replace a bundle that stands there.
        use_cache: take the result of the same export made before, and keep this one.
        say: told each step's name, its outcome in words, and whether that is a warning.
        on_progress: told the compiler's phase and how much of it is done, 0 to 1; from another thread.
        on_download: told the bytes so far and in all, where weights are downloaded.

    Raises:
        ExportError: the graph cannot be made, is not what was asked for, or does not agree with the original.
        BundleError: ``out`` cannot be written.
        ModelError: no such network, or weights that do not fit or cannot be had.
    """
    out = Path(out)
    check_target(out, force=force)
    check_torch()
    choice = None if recipe.engine == "auto" else _choose(recipe)
    source = resolve(recipe, cache.cache_folder() / "weights", on_download)
    say("weights", describe.weights_line(source.weights), not source.weights.trained)
    if source.weights.origin == "file":
        say("pictures", describe.pictures_line(source.preprocessing), False)
    key = cache.key_of(recipe, source.identity, _host(recipe))
    found = _found(key, out, force, say) if use_cache else None
    if found is not None:
        return found
    choice = choice or _choose(recipe)
    job = Job(recipe, source, choice, say, on_progress)
    bundle = _make(job, out, force)
    if use_cache and not _failed(choice, recipe):
        _keep(key, bundle, say)
    return bundle


def _choose(recipe: Recipe) -> Choice:
    with interrupts_held_back():
        return choose_compiler(recipe.engine, targets=recipe.targets)


def _make(job: Job, out: Path, force: bool) -> Bundle:
    import_tools()
    from engineworks.export.prove import export_graph

    module = job.source.build()
    job.say("build", f"{describe.count(describe.parameters(module))} parameters", False)
    yardstick = _measure(module, job)
    exported = export_graph(module, dict(yardstick.inputs), (OUTPUT,), job.recipe)
    job.say("graph", describe.graph_line(exported, job.recipe), False)
    proven, engine = _prove_and_compile(job, exported, yardstick)
    job.say(
        "engine", describe.engine_line(engine, job.choice, job.recipe), engine is None and job.recipe.engine != "none"
    )
    manifest = describe.manifest(job.recipe, job.source, job.choice, describe.parameters(module), proven, engine)
    _say_notes(manifest, job.say)
    return write_bundle(out, manifest, describe.files(manifest, proven, engine, yardstick), force=force)


def _measure(module: "nn.Module", job: Job) -> "Yardstick":
    """Ask the original for its answers at every batch size, and see that they say something."""
    from engineworks.export.parity import Yardstick, batches, check_alive
    from engineworks.export.probe import examine
    from engineworks.export.reference import answer, answers_by_batch
    from engineworks.export.samples import sample_inputs
    from engineworks.runtime.preprocessing import Preprocessing

    samples = sample_inputs(Preprocessing.from_json(job.source.preprocessing))
    probes = examine(module, module, {INPUT: samples}, job.recipe.batch)
    reference = answer(module, {INPUT: samples})
    check_alive(reference)
    answers = answers_by_batch(module, {INPUT: samples}, reference, batches(job.recipe.batch))
    return Yardstick({INPUT: samples}, reference, answers, job.source.network.scores, probes)


def _prove_and_compile(job: Job, exported: "Exported", yardstick: "Yardstick") -> "tuple[Proven, Engine | None]":
    """Compile the typed graph in a thread while it is compared with the original; either failure stops the other."""
    from engineworks.export.prove import prove

    stop, builds = threading.Event(), list[Future[Engine]]()
    with ThreadPoolExecutor(1, "engine") as pool:

        def compile_beside(content: bytes) -> None:
            if job.choice.flavour is not None:
                builds.append(pool.submit(_compile, content, job, stop))

        try:
            proven = prove(
                exported, job.recipe, yardstick, compile_beside, lambda rung: job.say(*describe.rung_line(rung), False)
            )
            engine = builds[0].result() if builds else None
            if engine is not None:
                check_compiled(engine.layer_types, job.recipe.precision)
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
        on_progress=job.on_progress,
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
