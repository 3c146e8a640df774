"""Give a bundle an engine for a GPU, in a cache of such bundles: what ``serve-model --build-engines`` runs beside it.

``python -m engineworks.export.rebuild BUNDLE --cache DIR --target sm89`` prints the folder of the bundle with the
engine. It needs the compiler's package and what the runtime needs; neither torch nor onnx.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from engineworks.export.describe import engine_record
from engineworks.export.engine import Engine, compile_engine
from engineworks.export.precision import check_compiled
from engineworks.export.realised import check_engine
from engineworks.export.trt_compilers import Flavour, load_compiler
from engineworks.runtime.bundle import GRAPH, Bundle, open_bundle, write_bundle
from engineworks.runtime.command import leave, status_of
from engineworks.runtime.engine_cache import close_to_others, doubt, doubt_folder, entry_name, remove_old
from engineworks.runtime.errors import BundleError, EngineError

_PATIENCE = 10  # added to the process's niceness: whoever serves beside it goes first


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``rebuild`` with these arguments; 0 and the folder on stdout, 1 and a sentence on stderr, 2 wrong usage."""
    return status_of(_command, "rebuild", argv)


@click.command()
@click.argument("bundle")
@click.option("--cache", required=True, metavar="DIR", help="Where bundles with engines lie.")
@click.option("--target", required=True, help="The GPU, such as sm89.")
@click.option("--flavour", type=click.Choice(get_args(Flavour)), help="The compiler; default: the first that can.")
def _command(bundle: str, cache: str, target: str, flavour: Flavour | None) -> int:
    """Compile an engine for BUNDLE on this host, unless the cache has it."""
    os.nice(_PATIENCE)
    click.echo(rebuild(open_bundle(bundle), Path(cache), target, (flavour,) if flavour else get_args(Flavour)))
    return 0


def rebuild(bundle: Bundle, cache: Path, target: str, flavours: tuple[Flavour, ...]) -> Path:
    """Return the folder of the bundle with an engine for this GPU; compile it where the cache has none.

    Args:
        bundle: an opened bundle; every file's digest is checked.
        cache: the folder of such bundles; made where it is not there.
        target: the GPU, such as ``sm89``.
        flavours: the compilers to try, best first.

    Raises:
        EngineError: no compiler is installed, or each refused; in its own words.
        ExportError: the compiler reads other types in the graph than the bundle says, or its plan shows others.
        BundleError: the bundle is damaged, or the cache cannot be written.
    """
    problems = []
    for flavour in flavours:
        try:
            return _rebuild(bundle, cache, target, flavour)
        except EngineError as error:
            problems.append(f"{flavour}: {error}")
    raise EngineError("; ".join(problems))


def _rebuild(bundle: Bundle, cache: Path, target: str, flavour: Flavour) -> Path:
    out = cache / entry_name(bundle, flavour, str(load_compiler(flavour).__version__), target)
    if _usable(out, bundle):
        return out
    if cache.exists() and (problem := doubt_folder(cache)):
        raise BundleError(f"{problem}, so no engine from there is used. Name another folder, or take that right away.")
    files = {name: bundle.read(name) for name in bundle.manifest.files if not name.startswith("engines/")}
    batch = bundle.manifest.batch
    engine = compile_engine(files[GRAPH], flavour=flavour, batch=(batch.min, batch.opt, batch.max), targets=(target,))
    _check_precision(bundle, engine)
    check_engine(engine, files[GRAPH])
    record = engine_record(engine)
    notes = [note for note in bundle.manifest.notes if not note.startswith(("no engine", "passed over"))]
    notes += [f"the compiler warns: {warning}" for warning in engine.warnings]
    manifest = replace(bundle.manifest, engines=(record,), notes=(*notes, "the engine was compiled where it is served"))
    try:
        cache.mkdir(0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"cannot make {cache}: {error.strerror}.") from error
    try:
        write_bundle(out, manifest, files | {record.file: engine.plan}, force=True)
        close_to_others(out)
        remove_old(bundle, cache)
    except BundleError:
        if not _usable(out, bundle):  # else another process was quicker
            raise
    return out


def _usable(entry: Path, bundle: Bundle) -> bool:
    """Tell whether the cache has this entry, whole, and it is this bundle's."""
    if not entry.is_dir() or doubt(entry, bundle):
        return False
    try:
        open_bundle(entry).verify()
    except BundleError:
        return False
    return True


def _check_precision(bundle: Bundle, engine: Engine) -> None:
    asked = bundle.manifest.precision.asked
    rest = str(bundle.manifest.recipe.get("int8_rest", "fp16")) if asked == "int8" else asked
    check_compiled(engine.layer_types, rest, bundle.manifest.precision.realised.get("int8", 0))


if __name__ == "__main__":
    run()
